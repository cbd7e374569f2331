"""Add changed copies of labelled rows or documents, each marked as one and kept out of every evaluation.

    llmpipe augment --input reviews.jsonl --output more --set dictionary=synonyms.tsv --set num_copies=2
    llmpipe finetune --model base --input more --output tuned

EDA (Wei and Zou 2019): synonyms from your dictionary, swaps, insertions, deletions, in English and Chinese. Reads a file of
rows (text,label · text,text_pair,label · tokens,tags · context,question,answers · question,choices,answer · text) and writes
`part-*.jsonl`, or documents and writes documents; the originals stand before their copies. A copy of a row has `augmented`:
true and `augmented_from`: the id of its source (or the hash of its text); of a document, the same in `meta`. finetune,
tokenize and eval put no copy in valid or test, and none of a source that is there in train.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmpipe.data.docs import AUGMENTED, AUGMENTED_FROM, SCHEMA, DocUnit, docs_table, meta_value
from llmpipe.data.ids import content_hash, doc_id
from llmpipe.errors import InputError, UsageError
from llmpipe.work import Counts, UnitOutput, Work

OPERATIONS = ("synonym", "swap", "insert", "delete")
NEED_DICTIONARY = ("synonym", "insert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    dictionary: Path | None = None
    """Synonyms: TSV (word, then its synonyms, with tabs between them), JSON ({word: [synonyms]}), or Cilin's lines (`Aa01A01= 人 士 人物`)."""
    operations: list[Literal["synonym", "swap", "insert", "delete"]] = field(default_factory=list)
    """What is done, one of them a copy, in turn. Empty: all four, or without a dictionary swap and delete."""
    alpha: float = 0.1
    """Share of the words of a text that a copy changes, at least one."""
    num_copies: int = 2
    """Of each row or document. Wei and Zou take 16 below 500 rows, 8 below 2,000, 4 above."""
    outside: str = "O"
    """The tag of words outside of entities in tokens,tags rows; no other word is touched."""
    columns: list[str] = field(default_factory=list)
    """Columns of rows that are changed; empty: those that the kind of row allows."""
    seed: int = 1337

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.5:
            raise ValueError(f"alpha {self.alpha} is not in (0, 0.5]")
        if not 1 <= self.num_copies <= 64:
            raise ValueError(f"num_copies {self.num_copies} is not between 1 and 64")
        if self.dictionary is None and (wanting := [o for o in self.operations if o in NEED_DICTIONARY]):
            raise ValueError(f"operations: {' and '.join(wanting)} need a `dictionary` of synonyms")

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(self.operations) or tuple(o for o in OPERATIONS if self.dictionary is not None or o not in NEED_DICTIONARY)


@dataclass(frozen=True, slots=True)
class RowsUnit:
    """One file of rows."""

    name: str
    path: Path


def run(config: Config, work: Work) -> Counts:
    kinds = {given.kind for given, _ in work.pending}
    if len(kinds) > 1:
        raise UsageError("augment reads documents or rows, not both at once", hint="run it twice, with an --output each")
    (kind,) = kinds
    if work.previous is not None and work.previous.kind != kind:
        raise UsageError(f"{work.output} holds {work.previous.kind}, the new input is {kind}", hint="choose another --output")
    work.kind = kind
    if kind == "docs":
        results = work.map(augment_documents, work.doc_units(), shared=config)
    else:
        units = [RowsUnit(f"{given.role}-{shard.name}", given.path if given.path.is_file() else given.path / shard.name) for given, shard in work.pending]
        results = work.map(augment_rows, units, shared=config)
    return sum((r.counts for r in results), Counts())


# --- rows ----------------------------------------------------------------------------------------------------------


def augment_rows(unit: RowsUnit, out: UnitOutput, config: Config) -> Counts:
    """Copy the rows of a file with their copies behind them."""
    from llmpipe.augment.rows import plan_of, vary
    from llmpipe.data.rows import is_augmented, read_rows, text_key

    rows = read_rows(unit.path)
    plan = plan_of(rows, config, where=str(unit.path))
    editor = _editor(config)
    counts: Counter[str] = Counter()
    lines = []
    for row in rows:
        lines.append({**row, AUGMENTED: is_augmented(row)})
        if is_augmented(row):
            continue
        source = str(row["id"]) if row.get("id") is not None else text_key(row)
        copies = vary(row, plan, editor, source, counts)
        for number, copy in copies:
            own = {"id": f"{source}-augmented-{number}"} if row.get("id") is not None else {}
            lines.append({**copy, **own, AUGMENTED: True, AUGMENTED_FROM: source})
        counts["augmented"] += len(copies)
        counts["unchanged"] += not copies
    with out.path("{stem}.jsonl", rows=len(lines)) as path:
        path.write_text("".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines), encoding="utf-8")
    return Counts(read=len(rows), kept=len(rows), extra=dict(sorted((+counts).items())))


# --- documents -----------------------------------------------------------------------------------------------------


def augment_documents(unit: DocUnit, out: UnitOutput, config: Config) -> Counts:
    """Copy the documents of a row group with their copies behind them; a document that changed or went takes its copies along."""
    editor = _editor(config)
    counts: Counter[str] = Counter()
    lines: list[dict[str, Any]] = []
    read = 0
    for row in unit.read(SCHEMA.names).to_pylist():
        lines.append(row)
        live = row["op"] != "gone"
        read += live
        if meta_value(row["meta"], AUGMENTED):
            continue
        made = dict(editor.copies(row["text"], row["id"], counts)) if live else {}
        for number in range(config.num_copies):
            op = row["op"] if number in made else "gone"
            if op == "gone" and row["op"] == "new":
                continue
            text = made.get(number, "")
            meta = [*(row["meta"] or []), {"key": AUGMENTED, "value": "true"}, {"key": AUGMENTED_FROM, "value": row["id"]}]
            lines.append({**row, "id": doc_id(f"{row['id']}#augmented-{number}"), "url": None, "text": text, "content_hash": content_hash(text), "op": op, "meta": meta})
        counts["augmented"] += len(made)
        counts["unchanged"] += live and not made
    out.docs(docs_table(lines))
    return Counts(read=read, kept=read, extra=dict(sorted((+counts).items())))


_editors: dict[str, Any] = {}  # by config: the dictionary is read once a process


def _editor(config: Config) -> Any:
    from llmpipe.augment.dictionary import read_dictionary
    from llmpipe.augment.edit import Editor

    key = repr(config)
    if key not in _editors:
        synonyms = read_dictionary(config.dictionary) if config.dictionary is not None else {}
        if config.dictionary is not None and not synonyms:
            raise InputError(f"{config.dictionary}: no word with a synonym")
        _editors[key] = Editor(synonyms, config.chosen, alpha=config.alpha, num_copies=config.num_copies, seed=config.seed)
    return _editors[key]
