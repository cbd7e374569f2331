"""The document record: its Arrow schema, and readers and writers of Parquet shards.

    write_docs(path, rows)                      # rows: dicts or a RecordBatch with any of SCHEMA's columns
    for batch in read_docs(directory): ...      # the live documents: the latest row of each id, `gone` left out

Reads and writes `<output>/part-GGGGG-UUUUU.parquet` (generation, unit), one schema everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmpipe.data.files import atomic_path, sha256_file
from llmpipe.data.ids import content_hash
from llmpipe.data.manifest import Manifest, Shard, read_manifest
from llmpipe.errors import InputError

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # hex of the 128-bit hash of the canonical key
        pa.field("url", pa.string()),  # the final one, after redirects
        pa.field("text", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("author", pa.string()),
        pa.field("date", pa.string()),
        pa.field("language", pa.string()),  # BCP-47
        pa.field("language_score", pa.float32()),
        pa.field("license", pa.string()),
        pa.field("source", pa.string()),
        pa.field("fetched_at", pa.timestamp("us", tz="UTC")),
        pa.field("content_hash", pa.string()),  # of the text
        pa.field("op", pa.string(), nullable=False),  # new, changed or gone
        pa.field("meta", pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))),  # a map type is not read by `datasets`
    ]
)

DROPPED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("value", pa.string()),
        ("threshold", pa.string()),
        ("partner_id", pa.string()),  # of the document that this one duplicates
        ("snippet", pa.string()),  # the first 200 characters
    ]
)

# One row group is one unit of work. 2,000 rows fill about 8 MB on zh news; larger ones made resume slow.
MAX_GROUP_ROWS = 2_000
MAX_GROUP_BYTES = 8_000_000
SNIPPET_CHARS = 200
AUGMENTED, AUGMENTED_FROM = "augmented", "augmented_from"
"""Keys of `meta`, and columns of rows, by which a changed copy is known, and its source."""


@dataclass(frozen=True, slots=True)
class DocUnit:
    """One row group of one shard of a directory of documents: the unit of the data stages."""

    name: str
    """Unique in its generation, the same on every machine: `<input number>-<shard>-<row group>`."""
    path: str
    row_group: int
    num_rows: int

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Read the row group; a broken file is an `InputError` that names it."""
        try:
            with pq.ParquetFile(self.path) as f:
                table = f.read_row_group(self.row_group, columns=columns)
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise InputError(f"{self.path}: row group {self.row_group} cannot be read ({error})", hint=f"llmpipe verify {Path(self.path).parent}") from None
        return table


def parquet_rows(path: Path) -> list[int]:
    """Return the rows of each row group; a truncated or foreign file is an `InputError`."""
    try:
        meta = pq.read_metadata(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", hint=f"llmpipe verify {path.parent}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a whole Parquet file ({error})", hint=f"llmpipe verify {path.parent}") from None
    return [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]


def write_parquet(path: Path, table: pa.Table) -> Shard:
    """Write a table as one shard, zstd, cut in row groups by rows and bytes; return its entry for the manifest."""
    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, table.schema, compression="zstd", compression_level=3) as writer:
        for start, length in _groups(table):
            writer.write_table(table.slice(start, length), row_group_size=MAX_GROUP_ROWS)
    return Shard(name=path.name, rows=table.num_rows, bytes=path.stat().st_size, sha256=sha256_file(path))


def write_docs(path: Path, rows: Iterable[dict[str, Any]] | pa.Table) -> Shard:
    """Write documents as one shard. Columns that rows lack are null (`op`: new; `content_hash`: computed)."""
    return write_parquet(path, rows if isinstance(rows, pa.Table) else docs_table(rows))


def docs_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Make a table of SCHEMA from dicts; `meta` may be a dict, lone surrogates in strings become U+FFFD."""
    out = []
    for row in rows:
        row = {k: clean_str(v) if isinstance(v, str) else v for k, v in row.items()}
        meta = row.get("meta")
        if isinstance(meta, dict):
            row["meta"] = [{"key": k, "value": clean_str(str(v))} for k, v in sorted(meta.items()) if v is not None]
        row.setdefault("op", "new")
        row.setdefault("content_hash", content_hash(row["text"]))
        out.append(row)
    return pa.Table.from_pylist(out, schema=SCHEMA)


def dropped_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Make a table of DROPPED_SCHEMA; values and thresholds of any type become strings."""
    out = []
    for row in rows:
        row = {k: None if v is None else clean_str(f"{v:.6g}" if isinstance(v, float) else str(v)) for k, v in row.items()}
        row["snippet"] = (row.get("snippet") or "")[:SNIPPET_CHARS]
        out.append(row)
    return pa.Table.from_pylist(out, schema=DROPPED_SCHEMA)


def clean_str(text: str) -> str:
    """Replace lone surrogates, which UTF-8 and so Parquet cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def meta_value(meta: list[dict[str, str]] | None, key: str) -> str | None:
    return next((m["value"] for m in meta or () if m["key"] == key), None)


def doc_units(directory: Path, shards: Iterable[Shard], *, input_number: int = 0) -> list[DocUnit]:
    """Cut shards of a docs directory into units, one per row group."""
    units = []
    for shard in shards:
        path = directory / shard.name
        for group, rows in enumerate(parquet_rows(path)):
            units.append(DocUnit(f"{input_number:02d}-{Path(shard.name).stem}-{group:04d}", str(path), group, rows))
    return units


def read_docs(directory: Path, *, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the live documents of a directory, in order of shards: of each id its latest row, unless that is `gone`.

    Memory: one row group and, where the directory has more than one generation, 16 bytes of each id.
    """
    manifest = read_manifest(directory, kind="docs")
    yield from read_shards(directory, manifest, columns=columns)


def read_shards(directory: Path, manifest: Manifest, *, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    shards = manifest.doc_shards()
    latest: dict[bytes, int] | None = None
    if len({s.generation for s in shards}) > 1:
        latest = {}
        for number, (shard, group) in enumerate(_row_groups(directory, shards)):
            for i in _read(directory / shard.name, group, ["id"]).column("id").to_pylist():
                latest[bytes.fromhex(i)] = number
    wanted = None if columns is None else list(dict.fromkeys([*columns, "id", "op"]))
    for number, (shard, group) in enumerate(_row_groups(directory, shards)):
        table = _read(directory / shard.name, group, wanted)
        if latest is not None:
            alive = [latest[bytes.fromhex(i)] == number for i in table.column("id").to_pylist()]
            table = table.filter(pa.array(alive))
        table = table.filter(pc.not_equal(table.column("op"), "gone"))
        if columns is not None:
            table = table.select(columns)
        yield from table.combine_chunks().to_batches()


def _row_groups(directory: Path, shards: list[Shard]) -> Iterator[tuple[Shard, int]]:
    for shard in shards:
        for group in range(len(parquet_rows(directory / shard.name))):
            yield shard, group


def _read(path: Path, group: int, columns: list[str] | None) -> pa.Table:
    return DocUnit("", str(path), group, 0).read(columns)


def _groups(table: pa.Table) -> Iterator[tuple[int, int]]:
    """Cut rows so that a group holds at most MAX_GROUP_ROWS rows and about MAX_GROUP_BYTES of text."""
    if "text" not in table.column_names or table.num_rows == 0:
        for start in range(0, max(table.num_rows, 1), MAX_GROUP_ROWS):
            yield start, min(MAX_GROUP_ROWS, table.num_rows - start)
        return
    sizes = pc.binary_length(table.column("text")).to_numpy()
    start = size = 0
    for i, n in enumerate(sizes):
        if i > start and (i - start >= MAX_GROUP_ROWS or size + n > MAX_GROUP_BYTES):
            yield start, i - start
            start, size = i, 0
        size += int(n or 0)
    yield start, len(sizes) - start
