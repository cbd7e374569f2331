"""Read the texts that a quality classifier or a perplexity model learns from.

    texts = sample_texts(Path("good_docs"), max_texts=10_000, max_chars=50_000_000)

A path is a directory of documents, a file of rows with a `text` column (JSONL, Parquet, CSV), a text file (.txt, .md, also
.gz and .zst; cut at blank lines in pieces of about 4,000 characters), or a folder of such files. Texts that are too many
are chosen by their hash: the same ones, whatever their order.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from llmpipe.clean.normalize import normalize
from llmpipe.data.docs import read_docs
from llmpipe.data.manifest import find_manifest
from llmpipe.data.rows import SUFFIXES, read_rows
from llmpipe.errors import InputError

PIECE_CHARS = 4_000
MAX_TEXT_CHARS = 20_000
"""Of one text that are read: long books shall not outweigh all else."""
TEXT_SUFFIXES = (".txt", ".md", ".rst")


def sample_texts(path: Path, *, max_texts: int, max_chars: int) -> list[str]:
    """Return different texts, normalised as clean does it, those of the smallest hashes first."""
    heap: list[tuple[int, str]] = []  # the largest hash on top
    seen: set[int] = set()
    size = 0
    for text in read_texts(path):
        text = normalize(text[:MAX_TEXT_CHARS])
        key = text_hash(text)
        if not text or key in seen:
            continue
        seen.add(key)
        heapq.heappush(heap, (-key, text))
        size += len(text)
        while len(heap) > max_texts or (size > max_chars and len(heap) > 1):
            gone, dropped = heapq.heappop(heap)
            seen.discard(-gone)
            size -= len(dropped)
    if not heap:
        raise InputError(f"{path}: no text to learn from")
    return [text for _, text in sorted(heap, reverse=True)]


def text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a path in its order."""
    if path.is_dir():
        manifest = find_manifest(path)
        if manifest is not None and manifest.kind == "docs":
            for batch in read_docs(path, columns=["text"]):
                yield from batch.column("text").to_pylist()
            return
        if manifest is not None and manifest.kind != "rows":
            raise InputError(f"{path} holds {manifest.kind}, but texts are needed here", hint="a directory of documents, rows with a text, or text files")
        files = sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in (*SUFFIXES, *TEXT_SUFFIXES) and p.name != "manifest.json")
        if not files:
            raise InputError(f"{path}: no documents, rows or text files", hint=f"files end in {', '.join((*TEXT_SUFFIXES, *SUFFIXES))}")
        for file in files:
            yield from read_texts(file)
    elif not path.exists():
        raise InputError(f"{path}: no such file or directory")
    elif _suffix(path) in TEXT_SUFFIXES:
        yield from _pieces(path)
    else:
        rows = read_rows(path)
        if not any("text" in row for row in rows[:100]):
            raise InputError(f"{path}: no column text; there are {', '.join(sorted(rows[0]))}")
        yield from (str(row["text"]) for row in rows if row.get("text"))


def _suffix(path: Path) -> str:
    return next((s.lower() for s in reversed(path.suffixes) if s.lower() not in (".gz", ".zst")), "")


def _pieces(path: Path) -> Iterator[str]:
    try:
        text = pa.input_stream(str(path), compression="detect").read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})", hint="is it whole, and UTF-8?") from None
    parts: list[str] = []
    size = 0
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        for start in range(0, len(paragraph) or 1, PIECE_CHARS):
            part = paragraph[start : start + PIECE_CHARS]
            if size + len(part) > PIECE_CHARS and parts:
                yield "\n\n".join(parts)
                parts, size = [], 0
            parts.append(part)
            size += len(part) + 2
    if parts:
        yield "\n\n".join(parts)
