"""Find the examples that a model is scored on: labelled rows, documents, the valid part of tokens, or its own test split.

    examples = language_rows(config, work)        # {"id", "text" or "ids", "num_bytes", "language", "source"}
    examples = labelled_rows(config, work, task)  # {"id", "text", "label", …}, and how many rows each rule dropped
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from llmpipe.data.docs import AUGMENTED, meta_value, read_docs
from llmpipe.data.rows import Row, is_augmented, read_rows, text_key
from llmpipe.data.tokens import TokensDir
from llmpipe.errors import InputError, UsageError
from llmpipe.finetune.examples import read_input, usable
from llmpipe.finetune.task import Encoder, Task
from llmpipe.work import Input, Work

if TYPE_CHECKING:
    from llmpipe.evaluate.stage import Config


def given_inputs(work: Work) -> list[Input]:
    return [i for i in work.inputs if i.role.isdigit()]


def language_rows(config: Config, work: Work, encoder: Encoder) -> list[Row]:
    """Collect documents to score as text, at most `max_documents`, each with its text."""
    inputs = given_inputs(work)
    if not inputs:
        raise UsageError("eval of a language model needs an --input", hint="a directory of tokens (its valid part), of documents, or rows with a `text` column")
    rows = [row for given in inputs for row in _texts(given, config, work, encoder)]
    if config.max_documents is not None and len(rows) > config.max_documents:
        work.log.info("eval: %s of %s documents are scored, drawn by a hash of their id (max_documents)", f"{config.max_documents:,}", f"{len(rows):,}")
        chosen = sorted(range(len(rows)), key=lambda i: hashlib.blake2b(rows[i]["id"].encode(), digest_size=8).digest())[: config.max_documents]
        rows = [rows[i] for i in sorted(chosen)]
    return rows


def _texts(given: Input, config: Config, work: Work, encoder: Encoder) -> list[Row]:
    if given.kind == "tokens":
        return _token_rows(given.path, work, encoder)
    if given.kind == "docs":
        columns = ["id", "text", "language", "source", "meta"]
        rows = [row for batch in read_docs(given.path, columns=columns) for row in batch.to_pylist()]
        return [{k: v for k, v in row.items() if k != "meta"} for row in rows if not meta_value(row["meta"], AUGMENTED)]
    rows = read_rows(given.path, columns=config.columns)
    if "text" not in rows[0]:
        raise InputError(f"{given.path}: no column text; there are {', '.join(sorted(rows[0]))}", hint="--set 'columns={text: THEIRS}' names it")
    return [{"id": text_key(r), "text": str(r["text"]), "language": r.get("language"), "source": r.get("source")} for r in rows if r.get("text") and not is_augmented(r)]


def _token_rows(path: Path, work: Work, encoder: Encoder) -> list[Row]:
    """Read the valid part. With another tokenizer than the model's, documents are decoded and encoded anew."""
    tokens = TokensDir(path)
    documents = list(tokens.split("valid").documents())
    if not documents:
        raise InputError(f"{path}: its valid part has no documents", hint="llmpipe tokenize --set valid_fraction=0.05 keeps some aside")
    from llmpipe.tokenizer.directory import load_tokenizer

    theirs = load_tokenizer(tokens.tokenizer)
    same = theirs.to_str() == load_tokenizer(work.input("model").path).to_str()
    if not same:
        work.log.info("eval: the model has another tokenizer than %s, so documents are decoded and encoded again", path)
    rows = []
    for document in documents:
        ids = document.ids[:-1] if len(document.ids) and document.ids[-1] == tokens.eos_id else document.ids
        row = {"id": document.id, "language": document.language, "source": document.source, "num_bytes": document.num_bytes}
        row["text"] = theirs.decode(ids.tolist(), skip_special_tokens=False)
        rows.append({**row, "ids": ids} if same else row)
    return rows


def labelled_rows(config: Config, work: Work, task: Task, labels: Sequence[str]) -> tuple[list[Row], Counter[str], str]:
    """Collect labelled rows, what was dropped, and the name of the split."""
    dropped: Counter[str] = Counter()
    if inputs := given_inputs(work):
        every = [row for given in inputs for row in read_input(given, config, Counter())]
        rows = [row for row in every if not is_augmented(row)]
        dropped["augmented"] = len(every) - len(rows)
        rows, split = usable(rows, task, dropped, 1.0, where=str(inputs[0].path)), "input"
    else:
        rows, split = own_split(work.input("model").path)
    known = [{**r, "id": text_key(r)} for r in rows if str(r["label"]) in labels]
    dropped["unknown_label"] += len(rows) - len(known)
    if not known:
        raise InputError(f"none of {len(rows)} rows has a label that the model knows ({', '.join(list(labels)[:8])})", hint="is this the set that it was trained for?")
    return known, +dropped, split


def own_split(model: Path) -> tuple[list[Row], str]:
    """Read the test part that finetune kept aside, or where there is none the valid part, which chose the weights."""
    for name in ("test", "valid"):
        if (rows := read_split(model, name)) is not None:
            return rows, name
    raise UsageError(f"{model} keeps no split of its own", hint="eval needs an --input with labelled rows")


def read_split(model: Path, name: str) -> list[Row] | None:
    path = model / "splits" / f"{name}.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else None
