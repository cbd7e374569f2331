"""Recognise files, open them decompressed, and cut them into units of bounded size.

    format_of("news.jsonl.gz")                       # "jsonl"
    units, unknown = plan_units(files, format="auto")  # one unit: a range of lines, a row group, some small files, part of a WARC

Units are cut by bytes and are the same on every machine.
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa

from llmpipe.data.docs import parquet_rows

Format = Literal["auto", "jsonl", "parquet", "text", "markdown", "html", "warc"]
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
UNIT_BYTES = 32 << 20
UNIT_FILES = 500
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)
"""What a broken compressed file raises while it is read."""


@dataclass(frozen=True, slots=True)
class File:
    key: str
    """Number of the input and relative name: what ids are made of, the same wherever the folder lies."""
    path: str
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Unit:
    name: str
    format: str
    files: tuple[File, ...]
    """One, or several small ones that are read whole."""
    start: int = 0
    """First byte; of Parquet, the row group."""
    end: int | None = None
    line: int = 1
    """Number of the line at `start`."""


def format_of(name: str) -> str | None:
    """Tell a file's format by its name, a compression suffix aside."""
    path = Path(name.lower())
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return _SUFFIXES.get(path.suffix)


def sniff(path: str) -> str:
    """Tell the format of a file whose name doesn't: used when it was named on the command line."""
    with open(path, "rb") as f:
        head = f.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"WARC/"):
        return "warc"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "jsonl"
    lowered = head.lstrip().lower()
    return "html" if lowered.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) else "text"


def included(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(Path(name).name, p) for p in patterns)


def open_file(path: str) -> BinaryIO:
    """Open a file for reading, decompressed by its suffix, several members or frames too. Read it in bounded pieces."""
    suffix = Path(path).suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    if suffix == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(path, "rb"), "zstd"), 1 << 18)  # type: ignore[arg-type]
    return open(path, "rb")


def read_lines(stream: BinaryIO, *, limit: int) -> Iterator[bytes | None]:
    """Yield lines with their ends; None for one longer than `limit`, which is passed over without being held."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


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
        whole = file_format in ("html", "markdown") or (file_format == "text" and not lines_too)
        if not whole or file_format != kind or len(group) >= UNIT_FILES or sum(f.bytes for f in group) + file.bytes > UNIT_BYTES:
            flush()
        kind = file_format
        if whole:
            group.append(file)
        else:
            units += _cut(file, file_format)
    flush()
    return units


def _cut(file: File, file_format: str) -> list[Unit]:
    """Cut one file: Parquet by row group, plain JSONL by lines, WARC by bytes; others are read in one stream."""
    if file_format == "parquet":
        return [Unit(f"parquet:{file.key}:{group}", file_format, (file,), group) for group in range(len(parquet_rows(Path(file.path))))]
    if file_format == "warc":
        return [Unit(f"warc:{file.key}:{start}", file_format, (file,), start, min(start + UNIT_BYTES, file.bytes)) for start in range(0, file.bytes, UNIT_BYTES)]
    if file_format == "jsonl" and Path(file.path).suffix.lower() not in _COMPRESSED:
        return [Unit(f"jsonl:{file.key}:{start}", file_format, (file,), start, end, line) for start, end, line in _line_ranges(file.path)]
    return [Unit(f"{file_format}:{file.key}", file_format, (file,))]


def _line_ranges(path: str) -> Iterator[tuple[int, int, int]]:
    """Yield (first byte, end, number of the first line) of ranges of whole lines, of UNIT_BYTES or a little more."""
    start = position = 0
    first = line = 1
    with open(path, "rb") as f:
        while chunk := f.read(min(1 << 20, UNIT_BYTES)):
            cut = chunk.find(b"\n") if position - start >= UNIT_BYTES else -1
            if cut >= 0:
                yield start, position + cut + 1, first
                start, first = position + cut + 1, line + 1
            line += chunk.count(b"\n")
            position += len(chunk)
    if position > start:
        yield start, position, first
