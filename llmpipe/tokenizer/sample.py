"""A bounded sample of documents to train a tokenizer on, the same for any cut into shards and any number of readers.

    sample = Sample([Path("docs")], sample_bytes=64_000_000)
    for text in sample: ...                  # can be repeated: each pass gives the same texts
    sample.read, sample.used, sample.size    # of the last pass: documents seen, documents taken, their bytes

Which documents are taken follows from the hash of their id, and from how much text there is of each language.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from llmpipe.data.docs import read_docs

LANGUAGE_EXPONENT = 0.5
"""Languages share a sample as the square roots of their sizes: 99 % English and 1 % Chinese make 91 and 9 %."""


class Sample:
    """Texts of the live documents of some directories, about `sample_bytes` of them in all."""

    def __init__(self, paths: Sequence[Path], *, sample_bytes: int, progress: Callable[[int, int], None] = lambda used, size: None) -> None:
        self.paths, self.progress = list(paths), progress
        self.read = self.used = self.size = 0
        sizes: Counter[str] = Counter()
        for batch in self._batches(["language", "text"]):
            lengths = pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False)
            for tag, length in zip(batch.column("language").to_pylist(), lengths.tolist(), strict=True):
                sizes[primary(tag)] += length
        self.shares = language_shares(sizes, sample_bytes)
        """Of each language's documents, how many are taken."""

    def __iter__(self) -> Iterator[str]:
        self.read = self.used = self.size = 0
        for batch in self._batches(["id", "language", "text"]):
            self.read += batch.num_rows
            for doc_id, tag, text in zip(*(batch.column(c).to_pylist() for c in ("id", "language", "text")), strict=True):
                share = self.shares[primary(tag)]
                if share >= 1.0 or hash_unit("sample", doc_id) < share:
                    self.used += 1
                    self.size += len(text.encode())
                    yield text
            self.progress(self.used, self.size)

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        for path in self.paths:
            yield from read_docs(path, columns=columns)


def primary(tag: str | None) -> str:
    """Return the language of a BCP-47 tag: zh of zh-Hant; `und` where none is known."""
    return (tag or "und").split("-")[0]


def language_shares(sizes: dict[str, int], budget: int) -> dict[str, float]:
    """Divide a budget of bytes over languages by the square root of their sizes; what one cannot use goes to the others."""
    shares = dict.fromkeys(sizes, 1.0)
    if sum(sizes.values()) <= budget:
        return shares
    open_, left = {k: n for k, n in sizes.items() if n}, float(budget)
    while open_:
        scale = left / sum(n**LANGUAGE_EXPONENT for n in open_.values())
        whole = [k for k, n in open_.items() if scale * n**LANGUAGE_EXPONENT >= n]
        if not whole:
            shares.update({k: scale * n**LANGUAGE_EXPONENT / n for k, n in open_.items()})
            break
        for k in whole:
            left -= open_.pop(k)
    return shares


def hash_unit(salt: str, doc_id: str) -> float:
    """Map a document to [0, 1), evenly, for good: the same on every machine and for every generation."""
    digest = hashlib.blake2b(f"{salt}:{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
