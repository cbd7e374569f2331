"""Recognise files by name or first bytes, and open them decompressed, on disk or behind a URL.

    format_of("news.jsonl.gz")                       # "jsonl"
    with open_file("s3://bucket/news.jsonl.gz") as stream: ...
"""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa

from llmpipe.data.remote import open_remote

Format = Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "markdown", "html", "warc", "wacz", "wiki", "epub", "docx", "pdf"]
FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",
    ".wacz": "wacz",
    ".xml": "wiki",
    ".epub": "epub",
    ".docx": "docx",
    ".pdf": "pdf",
}
"""Formats by the ending of a name. XML that is no MediaWiki dump is counted as `unknown_format` when it is read."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
TABLES = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
"""Formats whose records have named fields."""
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, zipfile.BadZipFile)
"""What a broken file raises while it is read. A network that fails raises `InputError` instead (see data/remote.py)."""


@dataclass(frozen=True, slots=True)
class File:
    key: str
    """Number of the input and relative name: what ids are made of, the same wherever the folder lies."""
    path: str
    """A path, or a URL with all that is needed to open it: never to be printed."""
    name: str
    bytes: int

    @property
    def is_local(self) -> bool:
        return "://" not in self.path


def format_of(name: str) -> str | None:
    """Tell a file's format by its name, a compression suffix aside."""
    path = Path(name.lower())
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    return FORMATS.get(path.suffix)


def sniff(file: File) -> str:
    """Tell the format of a file whose name doesn't: used when it was named on the command line."""
    try:
        with open_file(file) as stream:
            head = stream.read(4096)
    except READ_ERRORS:
        return "text"  # its reader says what is wrong with it
    for magic, found in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"WARC/", "warc"), (b"%PDF-", "pdf")):
        if head.startswith(magic):
            return found
    if head.startswith(b"PK\x03\x04"):
        return "epub" if b"application/epub+zip" in head[:200] else "docx" if b"word/" in head or b"[Content_Types]" in head[:200] else "wacz"
    bare = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if bare.startswith((b"{", b"[{")):
        return "jsonl" if bare.startswith(b"{") else "json"
    if b"<mediawiki" in head:
        return "wiki"
    return "html" if bare.lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body")) else "text"


def included(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(Path(name).name, p) for p in patterns)


def suffix_of(file: File) -> str:
    return Path(file.name).suffix.lower()


def open_raw(file: File) -> BinaryIO:
    """Open a file's bytes as they lie there, seekable on disk and where its server gives ranges."""
    return open(file.path, "rb") if file.is_local else open_remote(file.path)


def open_file(file: File) -> BinaryIO:
    """Open a file for reading, decompressed by its suffix, several members or frames too. Read it in bounded pieces."""
    suffix = suffix_of(file)
    if suffix not in COMPRESSED:
        return open_raw(file)
    raw = open_raw(file)
    if suffix == ".gz":
        return _Both(gzip.GzipFile(fileobj=raw, mode="rb"), raw)
    if suffix == ".bz2":
        return _Both(bz2.BZ2File(raw), raw)
    if suffix == ".xz":
        return _Both(lzma.LZMAFile(raw), raw)
    return _Both(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), raw)


class _Both(io.BufferedReader):
    """A decompressed stream that closes the file below it."""

    def __init__(self, stream: object, below: BinaryIO) -> None:
        super().__init__(stream, 1 << 18)  # type: ignore[arg-type]
        self._below = below

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._below.close()


def read_lines(stream: BinaryIO, *, limit: int) -> Iterator[bytes | None]:
    """Yield lines with their ends; None for one longer than `limit`, which is passed over without being held."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


def read_whole(file: File, limit: int) -> bytes | None:
    """Read a file of at most `limit` bytes, None for a longer one; raises READ_ERRORS for a broken one."""
    with open_file(file) as stream:
        body = stream.read(limit + 1)
        if len(body) <= limit:
            stream.read(1)  # the checksum at the end of a compressed file is looked at here
    return body if len(body) <= limit else None


