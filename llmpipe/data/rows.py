"""Read labelled rows from JSONL, CSV or Parquet, recognised by their columns, and split them by text.

    rows = read_rows(Path("reviews.jsonl.zst"))                 # [{"text": …, "label": …}, …]
    parts = split_rows(rows, valid=0.1, test=0.1)               # no text stands in two parts

JSONL may be plain, gz or zst, CSV and TSV need a header. Columns beyond those of a task are kept. Reads files, writes none.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.config import nearest
from llmpipe.data.docs import AUGMENTED, AUGMENTED_FROM, clean_str
from llmpipe.data.manifest import find_manifest
from llmpipe.errors import InputError

Row = dict[str, Any]
GROUP = "group"
"""Column that keeps rows together when they are split: passages of one document."""
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_LINE_CHARS = 100_000_000


def read_rows(path: Path, *, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Read all rows of a file. `columns` maps our names to the file's (`{"text": "sentence"}`).

    Raises `InputError` with the line's number for what cannot be read; blank lines are passed over.
    """
    if path.is_dir() and (manifest := find_manifest(path)) is not None and manifest.kind == "rows":  # made by augment
        return [row for shard in manifest.shards for row in read_rows(path / shard.name, columns=columns)]
    suffix = _suffix(path)
    reader = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv}.get(suffix, _jsonl)
    rows = []
    try:
        for row in reader(path):
            rows.append({k: clean_str(v) if isinstance(v, str) else v for k, v in row.items()})
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise InputError(f"{path}: cannot be read as {suffix[1:]} ({error})", hint="is it whole, and UTF-8?") from None
    if not rows:
        raise InputError(f"{path}: no rows")
    return _renamed(rows, columns or {}, path)


def rows_kind(rows: Sequence[Row]) -> frozenset[str]:
    """Return the columns that every one of the first rows has."""
    kind = frozenset(rows[0])
    for row in rows[1:100]:
        kind &= frozenset(row)
    return kind


def text_key(row: Mapping[str, Any]) -> str:
    """Hash what a row says, folding case, width and white space: the identity that splits and overlap counts use."""
    columns = ("text", "text_pair") if row.get("text") is not None else ("tokens", "context", "question", "choices", "source", "target", "messages", "prompt")
    parts = [str(row[c]) for c in columns if row.get(c) is not None]
    folded = "\x00".join(" ".join(unicodedata.normalize("NFKC", p).lower().split()) for p in parts)
    return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_augmented(row: Mapping[str, Any]) -> bool:
    """Whether a row is a changed copy of another (`llmpipe augment`), which no evaluation may hold."""
    return row.get(AUGMENTED) in (True, 1, "1", "true", "True")


def split_rows(rows: Sequence[Row], *, valid: float, test: float) -> dict[str, list[Row]]:
    """Split into train, valid and test by a hash of the group, or else of the text: equal texts stay together.

    The split depends on neither seed nor order, so the test part of a set stays the same for every run on it. Augmented rows
    go where their source goes; there they are left out of valid and test, so that those parts are the same with and without.
    """
    parts: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    keys = {str(r["id"]): text_key(r) for r in rows if r.get("id") is not None and not is_augmented(r)} if any(map(is_augmented, rows)) else {}
    for row in rows:
        source = str(row[AUGMENTED_FROM]) if is_augmented(row) and row.get(AUGMENTED_FROM) is not None else None
        key = str(row.get(GROUP) or (text_key(row) if source is None else keys.get(source, source)))
        place = int.from_bytes(hashlib.blake2b(b"split:" + key.encode(), digest_size=8).digest()) / 2**64
        part = "test" if place < test else "valid" if place < test + valid else "train"
        if part == "train" or not is_augmented(row):
            parts[part].append(row)
    parts["train"] = without_copies_of(parts["train"], [*parts["valid"], *parts["test"]])
    return parts


def without_copies_of(train: list[Row], held: Sequence[Row]) -> list[Row]:
    """Leave out the augmented rows of `train` whose source is held for evaluation, or which have come to say what a held row says."""
    if not any(map(is_augmented, train)):
        return train
    texts = {text_key(r) for r in held}
    names = texts | {str(r["id"]) for r in held if r.get("id") is not None}
    groups = {str(r[GROUP]) for r in held if r.get(GROUP)}
    keys = {str(r["id"]): text_key(r) for r in train if r.get("id") is not None and not is_augmented(r)}

    def leaks(row: Row) -> bool:
        source = str(row.get(AUGMENTED_FROM))
        return source in names or keys.get(source) in texts or text_key(row) in texts or str(row.get(GROUP)) in groups

    return [r for r in train if not is_augmented(r) or not leaks(r)]


def overlap(train: Sequence[Row], other: Sequence[Row]) -> int:
    """Count the rows of `other` whose text occurs in `train` too."""
    seen = {text_key(r) for r in train}
    return sum(text_key(r) in seen for r in other)


# --- formats -------------------------------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    suffix = next((s.lower() for s in reversed(path.suffixes) if s.lower() not in (".gz", ".zst")), "")
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: rows are read from {', '.join(SUFFIXES)}, the first three also as .gz or .zst", hint="rename it to what it holds")
    return suffix


def _lines(path: Path) -> io.TextIOWrapper:
    if not path.is_file():
        raise FileNotFoundError(path)
    return io.TextIOWrapper(io.BufferedReader(pa.input_stream(str(path), compression="detect")), encoding="utf-8-sig", newline="")


def _jsonl(path: Path) -> Iterator[Row]:
    with _lines(path) as lines:
        number = 0
        while line := lines.readline(MAX_LINE_CHARS):
            number += 1
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith("["):
                yield from _json_array(path, line + lines.read())
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}: line {number} is not JSON ({error})", hint="JSONL has one object a line") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number} is not a JSON object")
            yield row


def _json_array(path: Path, text: str) -> Iterator[Row]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: item {number} is not a JSON object")
        yield row


def _csv(path: Path) -> Iterator[Row]:
    with _lines(path) as lines:
        reader = csv.DictReader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{path}: line {reader.line_num} has another number of fields than the header ({len(reader.fieldnames or ())})")
            yield row


def _parquet(path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _renamed(rows: list[Row], columns: Mapping[str, str], path: Path) -> list[Row]:
    for ours, theirs in columns.items():
        if theirs not in rows[0]:
            raise InputError(f"{path}: no column {theirs!r}{nearest(theirs, list(rows[0]))}", hint=f"columns.{ours} names it")
    if not columns:
        return rows
    taken = set(columns.values()) | set(columns)
    return [{**{k: v for k, v in row.items() if k not in taken}, **{ours: row.get(theirs) for ours, theirs in columns.items()}} for row in rows]
