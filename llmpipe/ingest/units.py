"""Cut files into units of bounded size, the same on every machine.

    units = plan_units(files)      # a range of lines, a row group, some batches, some small files, part of a WARC or a dump

A file that cannot be cut because it is broken becomes one unit, whose reader counts it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.ingest.files import COMPRESSED, READ_ERRORS, File, open_raw, suffix_of

UNIT_BYTES = 32 << 20
UNIT_FILES = 500
UNIT_BOOKS = 50
"""EPUB, DOCX and PDF take a tenth of a second and more each."""
WHOLE = {"html": UNIT_FILES, "markdown": UNIT_FILES, "text": UNIT_FILES, "epub": UNIT_BOOKS, "docx": UNIT_BOOKS, "pdf": UNIT_BOOKS}
"""Formats where a file is a document: several go into a unit, at most so many."""


@dataclass(frozen=True, slots=True)
class Unit:
    name: str
    format: str
    files: tuple[File, ...]
    """One, or several small ones that are read whole."""
    start: int = 0
    """First byte; of Parquet the row group, of Arrow the first batch."""
    end: int | None = None
    line: int = 1
    """Number of the line at `start`."""
    member: str = ""
    """Of a WACZ: the WARC in it."""


def plan_units(files: list[tuple[File, str]], *, lines_too: bool = False) -> list[Unit]:
    """Cut files of known formats into units. `lines_too`: text is read by lines as well, since it is to be split."""
    units: list[Unit] = []
    group: list[File] = []
    kind = ""

    def flush() -> None:
        if group:
            units.append(Unit(f"{kind}:{group[0].key}", kind, tuple(group)))
            group.clear()

    for file, file_format in files:
        whole = file_format in WHOLE and not (file_format == "text" and lines_too)
        if not whole or file_format != kind or len(group) >= WHOLE[file_format] or sum(f.bytes for f in group) + file.bytes > UNIT_BYTES:
            flush()
        kind = file_format
        if whole:
            group.append(file)
        else:
            units += _cut(file, file_format)
    flush()
    return units


def _cut(file: File, file_format: str) -> list[Unit]:
    """Cut one file; what is not known to be cut cheaply is read in one stream."""
    try:
        if file_format == "parquet":
            return [Unit(f"parquet:{file.key}:{n}", file_format, (file,), n, line=1 + before) for n, before in _row_groups(file)]
        if file_format == "arrow":
            return [Unit(f"arrow:{file.key}:{start}", file_format, (file,), start, end, line) for start, end, line in _batches(file)]
        if file_format == "warc" or (file_format == "wiki" and suffix_of(file) == ".bz2"):
            return [Unit(f"{file_format}:{file.key}:{start}", file_format, (file,), start, min(start + UNIT_BYTES, file.bytes)) for start in range(0, file.bytes, UNIT_BYTES)]
        if file_format == "wacz":
            return list(_warcs(file))
        if file_format == "jsonl" and file.is_local and suffix_of(file) not in COMPRESSED:
            return [Unit(f"jsonl:{file.key}:{start}", file_format, (file,), start, end, line) for start, end, line in _line_ranges(file)]
    except READ_ERRORS:
        return [Unit(f"{file_format}:{file.key}", file_format, (file,))]
    return [Unit(f"{file_format}:{file.key}", file_format, (file,))]


def _row_groups(file: File) -> Iterator[tuple[int, int]]:
    """Yield (row group, rows before it)."""
    before = 0
    with open_raw(file) as stream:
        meta = pq.read_metadata(stream)
    for n in range(meta.num_row_groups):
        yield n, before
        before += meta.row_group(n).num_rows


def _batches(file: File) -> list[tuple[int, int | None, int]]:
    """Cut Arrow IPC into (first batch, end, number of the first row), by bytes; a stream that is not on disk stays whole."""
    if not file.is_local:
        return [(0, None, 1)]
    ranges, start, size, row, first = [], 0, 0, 1, 1
    with pa.memory_map(file.path) as stream:
        batches = arrow_batches(stream)
        number = -1
        for number, batch in enumerate(batches):  # mapped, not read: no copy is made
            if size >= UNIT_BYTES:
                ranges.append((start, number, first))
                start, size, first = number, 0, row
            size += batch.nbytes
            row += batch.num_rows
    return [*ranges, (start, number + 1, first)]


def arrow_batches(stream: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an IPC file or an IPC stream."""
    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        reader = pa.ipc.open_file(stream)
        for n in range(reader.num_record_batches):
            yield reader.get_batch(n)
    else:
        yield from pa.ipc.open_stream(stream)


def _warcs(file: File) -> Iterator[Unit]:
    """Cut the WARCs of a WACZ; those stored as they are, as the format wants it, in ranges."""
    with open_raw(file) as stream, zipfile.ZipFile(stream) as archive:
        members = sorted((m for m in archive.infolist() if m.filename.startswith("archive/") and m.filename.endswith((".warc", ".warc.gz"))), key=lambda m: m.filename)
    for member in members:
        stored = member.compress_type == zipfile.ZIP_STORED
        size = min(member.file_size, file.bytes)  # its directory may lie
        for start in range(0, size, UNIT_BYTES) if stored else (0,):
            end = min(start + UNIT_BYTES, size) if stored else None
            yield Unit(f"wacz:{file.key}:{member.filename}:{start}", "wacz", (file,), start, end, member=member.filename)
    if not members:
        yield Unit(f"wacz:{file.key}", "wacz", (file,))


def _line_ranges(file: File) -> Iterator[tuple[int, int, int]]:
    """Yield (first byte, end, number of the first line) of ranges of whole lines, of UNIT_BYTES or a little more."""
    start = position = 0
    first = line = 1
    with open_raw(file) as f:
        while chunk := f.read(min(1 << 20, UNIT_BYTES)):
            cut = chunk.find(b"\n") if position - start >= UNIT_BYTES else -1
            if cut >= 0:
                yield start, position + cut + 1, first
                start, first = position + cut + 1, line + 1
            line += chunk.count(b"\n")
            position += len(chunk)
    if position > start:
        yield start, position, first
