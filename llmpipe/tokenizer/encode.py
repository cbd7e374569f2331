"""Turn documents into token shards, split into train and valid.

    llmpipe tokenize --input docs --tokenizer tok --output tokens --set valid_fraction=0.01

Reads documents and a tokenizer; writes what data/tokens.py describes, and a copy of the tokenizer in `tokenizer/`. Each row
group is encoded on its own (kills lose at most those in flight) and the pieces are then joined, in order, into shards. New
input appends shards; documents that changed or went leave tombstones.
"""

from __future__ import annotations

import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmpipe.data.docs import AUGMENTED_FROM, DocUnit, meta_value, write_parquet
from llmpipe.data.files import atomic_write, read_json, sha256_file
from llmpipe.data.tokens import DOCS_SCHEMA, SPLITS, TOMBSTONES_SCHEMA, index_bytes, read_documents, token_dtype
from llmpipe.errors import InputError
from llmpipe.tokenizer.directory import GGUF_SPLITS, TOKENIZER_FILES, gguf_pre, load_tokenizer, special_ids
from llmpipe.tokenizer.sample import hash_unit
from llmpipe.work import Counts, UnitOutput, UnitResult, Work

BATCH_BYTES = 1_000_000
WORD_END = re.compile(r"[A-Za-z\u4e00-\u9fff](?=[ \n,.，。；：])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    valid_fraction: float = 0.01
    """Share of documents, chosen by the hash of their id, that is kept out of training; the same ones whatever else is in the input."""
    shard_tokens: int = 100_000_000
    """A shard closes once it holds this many tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.valid_fraction < 1:
            raise ValueError(f"valid_fraction {self.valid_fraction} is not in [0, 1)")
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens {self.shard_tokens} is below 1")


@dataclass(frozen=True, slots=True)
class EncodeUnit:
    """One row group of documents, and which of its rows a later row of the same id supersedes."""

    docs: DocUnit
    superseded: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.docs.name


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """Pieces of one split that make one shard."""

    name: str
    pieces: tuple[str, ...]
    split: str


def run(config: Config, work: Work) -> Counts:
    given = work.input("tokenizer")
    assert given is not None
    facts = _copy_tokenizer(given.path, work)
    units, seen = _encode_units(work.doc_units(), work.previous is not None)
    shared = {"tokenizer": str(given.path), "digest": sha256_file(given.path / "tokenizer.json"), "valid_fraction": config.valid_fraction, **facts}
    pieces = work.map(encode, units, phase="piece", shared=shared)
    for piece in pieces:
        for shard in piece.shards:
            work.files.pop(shard.name, None)  # pieces are scaffolding, removed below
    shards = _plan_shards(pieces, work, config.shard_tokens)
    made = work.map(assemble, shards, phase="shard", shared={"root": str(work.output), **facts})
    counts = sum((p.counts for p in pieces), Counts())
    dead = _write_tombstones(work, seen) if work.previous is not None else None
    work.info.update(_info(work, made, dead), **facts)
    shutil.rmtree(work.output / "state" / "pieces", ignore_errors=True)
    return counts


def _copy_tokenizer(source: Path, work: Work) -> dict[str, int]:
    """Put the tokenizer beside the tokens that it made; return its size and its end token."""
    tokenizer = load_tokenizer(source)
    eos = special_ids(source).get("eos_token_id")
    if eos is None:
        raise InputError(f"{source}: tokenizer_config.json names no eos_token, and each document must end with one")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            atomic_write(work.output / "tokenizer" / name, (source / name).read_bytes())
            work.add_file(work.output / "tokenizer" / name)
    return {"vocab_size": tokenizer.get_vocab_size(with_added_tokens=True), "eos_id": eos}


def _encode_units(docs: list[DocUnit], growing: bool) -> tuple[list[EncodeUnit], set[str]]:
    """Find which rows are superseded by a later one of their id. Memory: the ids. Returns the ids too when growing."""
    last: dict[str, tuple[int, int]] = {}
    superseded: dict[int, list[int]] = {}
    for number, unit in enumerate(docs):
        for row, doc in enumerate(unit.read(["id"])["id"].to_pylist()):
            if doc in last:
                superseded.setdefault(last[doc][0], []).append(last[doc][1])
            last[doc] = number, row
    return [EncodeUnit(u, tuple(sorted(superseded.get(n, ())))) for n, u in enumerate(docs)], set(last) if growing else set()


# --- encoding one row group -----------------------------------------------------------------------------------------

_loaded: dict[str, Any] = {}  # by digest, one tokenizer per worker process: loading a large one takes a second


def encode(unit: EncodeUnit, out: UnitOutput, shared: dict[str, Any]) -> Counts:
    """Encode the live rows of a row group into a piece for each split: raw tokens, and a table of the documents."""
    table = unit.docs.read(["id", "text", "source", "language", "op", "meta"])
    there = np.ones(table.num_rows, dtype=bool)
    there[list(unit.superseded)] = False
    live = pc.not_equal(table["op"], "gone").to_numpy()
    gone = int((there & ~live).sum())
    table = table.filter(pa.array(there & live))
    read = table.num_rows
    splits = [_split(i, meta, shared["valid_fraction"]) for i, meta in zip(table["id"].to_pylist(), table["meta"].to_pylist(), strict=True)]
    table = table.filter(pa.array([split is not None for split in splits], pa.bool_()))
    valid = np.array([split == "valid" for split in splits if split is not None], dtype=bool)
    sizes = pc.binary_length(table["text"]).to_numpy()
    tokenizer, cut = _tokenizer(shared["tokenizer"], shared["digest"])
    tokens = [_checked(t, shared) for t in _encode_texts(table["text"].to_pylist(), sizes.tolist(), tokenizer, shared["eos_id"], cut=cut)]
    value: dict[str, int] = {}
    for split, chosen in (("train", np.flatnonzero(~valid)), ("valid", np.flatnonzero(valid))):
        lengths = np.array([len(tokens[i]) for i in chosen], dtype=np.int64)
        value[split] = int(lengths.sum())
        if len(chosen):
            with out.path(f"state/pieces/{{stem}}.{split}.bin", rows=value[split]) as path, open(path, "wb") as f:
                for i in chosen:
                    f.write(tokens[i])
            with out.path(f"state/pieces/{{stem}}.{split}.parquet", rows=len(chosen)) as path:
                pq.write_table(_documents(table.take(chosen), lengths, sizes[chosen]), path)
    out.value = {"stem": out.stem, **value}
    extra = {"bytes": int(sizes.sum()), "gone": gone, "superseded": len(unit.superseded), **{f"{s}_tokens": value[s] for s in SPLITS}}
    kept = table.num_rows
    return Counts(read=read, kept=kept, dropped={"augmented_held_out": read - kept} if read > kept else {}, extra=extra)


def _split(doc_id: str, meta: list[dict[str, str]] | None, valid_fraction: float) -> str | None:
    """Say which split a document belongs to, by its id; None for the augmented copy of a document that is in valid."""
    source = meta_value(meta, AUGMENTED_FROM)
    if hash_unit("valid", source or doc_id) >= valid_fraction:
        return "train"
    return None if source else "valid"


def _encode_texts(texts: list[str], sizes: list[int], tokenizer: Any, eos: int, *, cut: bool) -> Iterator[np.ndarray]:
    """Encode texts, each with its end, about BATCH_BYTES at a time: what the library keeps of a text is 200 times its size.

    With `cut` a longer text is encoded in parts, which gives the same ids.
    """
    start = 0
    while start < len(texts):
        end, size = start + 1, sizes[start]
        while end < len(texts) and size + sizes[end] <= BATCH_BYTES:
            size += sizes[end]
            end += 1
        if cut and size > BATCH_BYTES:  # one long text
            parts = (tokenizer.encode_batch_fast([part], add_special_tokens=False)[0] for part in cut_text(texts[start], BATCH_BYTES // 2))
            yield _ids(parts, eos)
        else:
            yield from (_ids([encoding], eos) for encoding in tokenizer.encode_batch_fast(texts[start:end], add_special_tokens=False))
        start = end


def _ids(encodings: Iterable[Any], eos: int) -> np.ndarray:
    ids = array("I")
    for encoding in encodings:
        ids.extend(array("I", encoding.ids))  # half the time that numpy takes to read a list
    ids.append(eos)
    return np.frombuffer(ids, dtype=np.uint32)


def cut_text(text: str, num_chars: int) -> Iterator[str]:
    """Cut a text after every `num_chars` characters or so, where a letter ends a word: there the patterns of `can_cut` split anyway."""
    start = 0
    while (end := WORD_END.search(text, start + num_chars)) is not None:
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def can_cut(directory: Path) -> bool:
    """Whether a text encoded in parts gives the same ids: for the splits of GPT-2, Qwen2, Llama 3 and BERT, which look at no word's left."""
    raw = read_json(directory / "tokenizer.json")
    if not all(token["special"] for token in raw.get("added_tokens") or ()):
        return False
    first = raw.get("pre_tokenizer") or {}
    first = (first.get("pretokenizers") or [first])[0]
    known = gguf_pre(directory) is not None or (first.get("type") == "Split" and first["pattern"].get("Regex") in GGUF_SPLITS)
    bert = first.get("type") == "BertPreTokenizer" and (raw.get("normalizer") or {}).get("type") in (None, "BertNormalizer")
    return bert or (known and raw.get("normalizer") is None)


def _checked(tokens: np.ndarray, shared: dict[str, Any]) -> np.ndarray:
    if (largest := tokens.max()) >= shared["vocab_size"]:
        raise InputError(f"{shared['tokenizer']}: gives id {largest}, but its vocabulary has {shared['vocab_size']}", hint="the tokenizer's files do not belong together")
    return tokens.astype(token_dtype(shared["vocab_size"]))


def _tokenizer(path: str, digest: str) -> tuple[Any, bool]:
    """Load a tokenizer once per process, single-threaded, since the workers are the parallelism; say whether texts can be cut.

    Special tokens that a document spells out stay text: what a web page writes must not end a document in the stream.
    """
    if digest not in _loaded:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        tokenizer = load_tokenizer(Path(path))
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _loaded[digest] = tokenizer, can_cut(Path(path))
    return _loaded[digest]


def _documents(rows: pa.Table, lengths: np.ndarray, sizes: np.ndarray) -> pa.Table:
    """Describe documents; offsets count from the start of the piece."""
    columns = {**{c: rows[c] for c in ("id", "source", "language")}, "offset": np.cumsum(lengths) - lengths, "length": lengths, "bytes": sizes}
    return pa.table(columns).cast(DOCS_SCHEMA)


# --- joining pieces into shards -------------------------------------------------------------------------------------


def _plan_shards(pieces: list[UnitResult], work: Work, shard_tokens: int) -> list[ShardUnit]:
    """Cut each split's pieces, in order, into shards; numbers go on where earlier generations ended."""
    shards = []
    for split in SPLITS:
        old = work.previous.shards if work.previous else []
        number = sum(s.name.startswith(f"{split}-") and s.name.endswith(".bin") for s in old)
        group: list[str] = []
        size = 0
        filled = [p.value for p in pieces if p.value[split]]
        for value in filled:
            group.append(value["stem"])
            size += value[split]
            if size >= shard_tokens or value is filled[-1]:
                shards.append(ShardUnit(f"{split}-{number:05d}", tuple(group), split))
                group, size, number = [], 0, number + 1
    return shards


def assemble(unit: ShardUnit, out: UnitOutput, shared: dict[str, Any]) -> Counts:
    """Join pieces into `.bin`, `.idx` and `.docs.parquet`. Memory: one piece, and the documents' table."""
    folder = Path(shared["root"]) / "state" / "pieces"
    tables = []
    tokens = 0
    for stem in unit.pieces:
        table = pq.read_table(folder / f"{stem}.{unit.split}.parquet")
        tables.append(table.set_column(3, "offset", pa.array(table["offset"].to_numpy() + tokens)))
        tokens += int(table["length"].to_numpy().sum())
    documents = pa.concat_tables(tables).cast(DOCS_SCHEMA)
    with out.path(f"{unit.name}.bin", rows=tokens) as path, open(path, "wb") as whole:
        for stem in unit.pieces:
            with open(folder / f"{stem}.{unit.split}.bin", "rb") as piece:
                shutil.copyfileobj(piece, whole, 1 << 20)
    with out.path(f"{unit.name}.idx", rows=documents.num_rows) as path:
        path.write_bytes(index_bytes(documents["length"].to_numpy(), token_dtype(shared["vocab_size"])))
    with out.path(f"{unit.name}.docs.parquet", rows=documents.num_rows) as path:
        pq.write_table(documents, path, compression="zstd")
    out.value = {"split": unit.split, "tokens": tokens, "documents": documents.num_rows, "bytes": int(documents["bytes"].to_numpy().sum())}
    return Counts()


def _write_tombstones(work: Work, seen: set[str]) -> pa.Table:
    """List the spans of earlier generations whose documents came again, changed or went."""
    assert work.previous is not None
    buried = set()
    for old in work.previous.shards:
        if old.name.startswith("tombstones-"):
            table = pq.read_table(work.output / old.name)
            buried |= set(zip(table["shard"].to_pylist(), table["offset"].to_pylist(), strict=True))
    rows = []
    for old in work.previous.shards:
        if old.name.endswith(".docs.parquet"):
            name = old.name.removesuffix(".docs.parquet")
            for row in read_documents(work.output, name).to_pylist():
                if row["id"] in seen and (name, row["offset"]) not in buried:
                    rows.append({"id": row["id"], "shard": name, "offset": row["offset"], "length": row["length"], "bytes": row["bytes"]})
    table = pa.Table.from_pylist(rows, schema=TOMBSTONES_SCHEMA)
    if rows:
        path = work.output / f"tombstones-{work.generation:05d}.parquet"
        write_parquet(path, table)
        work.add_file(path, rows=len(rows))
    return table


def _info(work: Work, made: list[UnitResult], dead: pa.Table | None) -> dict[str, Any]:
    """Add up tokens, documents and bytes, of all generations, less what tombstones took."""
    info = {f"{split}_{what}": 0 for split in SPLITS for what in ("tokens", "documents", "bytes")}
    if work.previous is not None:
        info.update({k: work.previous.info[k] for k in info})
    for shard in made:
        for what in ("tokens", "documents", "bytes"):
            info[f"{shard.value['split']}_{what}"] += shard.value[what]
    for row in dead.to_pylist() if dead is not None else ():
        split = row["shard"].split("-")[0]
        info[f"{split}_tokens"] -= row["length"]
        info[f"{split}_documents"] -= 1
        info[f"{split}_bytes"] -= row["bytes"]
    tokens, size = (sum(info[f"{s}_{what}"] for s in SPLITS) for what in ("tokens", "bytes"))
    return {"tokens": tokens, **info, "bytes_per_token": round(size / tokens, 4) if tokens else 0.0}
