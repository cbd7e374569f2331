"""Compute the exact Jaccard similarity of candidates from their texts.

    with ShingleSets(near, scratch_dir) as sets:
        sets.add_unit(unit, {row: number, …})
        sets.similarity(a, b)

A set is the sorted distinct shingles of a document with case and width folded but accents and digits kept, 4 bytes each,
in an unlinked scratch file: about 2 KB a candidate on disk, nothing of it in memory.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmpipe.data.docs import DocUnit
from llmpipe.dedup.minhash import hashes32
from llmpipe.dedup.shingles import block_of, prepare, shingles
from llmpipe.text.block import Block, blocks


class ShingleSets:
    """The shingle sets of numbered documents, kept in a scratch file that vanishes with the process."""

    def __init__(self, near: Any, folder: Path) -> None:
        self._near = near
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # closed by __exit__
        self._spans: dict[int, tuple[int, int]] = {}
        self._size = 0

    def __enter__(self) -> ShingleSets:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add_unit(self, unit: DocUnit, numbers: dict[int, int]) -> None:
        """Read the rows of a unit that `numbers` names and store their sets under those numbers."""
        rows = sorted(numbers)
        texts = unit.read(["text"]).column("text").take(pa.array(rows, pa.int64())).to_pylist()
        for start, block in blocks([prepare(t) for t in texts], inner_dots=False):
            for k, own in enumerate(shingle_sets(block, self._near)):
                self._spans[numbers[rows[start + k]]] = (self._size, len(own))
                self._file.write(own.tobytes())
                self._size += own.nbytes

    def similarity(self, a: int, b: int) -> float:
        x, y = self._read(a), self._read(b)
        both = np.concatenate((x, y))
        both.sort(kind="stable")  # two sorted runs: a merge
        shared = int((both[1:] == both[:-1]).sum())
        return shared / (len(x) + len(y) - shared) if shared else 0.0

    def _read(self, number: int) -> np.ndarray:
        offset, length = self._spans[number]
        self._file.flush()
        return np.frombuffer(os.pread(self._file.fileno(), 4 * length, offset), np.uint32)


def shingle_sets(block: Block, near: Any) -> list[np.ndarray]:
    """Return each document's distinct shingles, sorted, as uint32."""
    hashes, docs = shingles(block, block.tables.exact, words=near.ngram, characters=near.char_ngram)
    bounds = np.searchsorted(docs, np.arange(block.num_docs + 1))
    small = hashes32(hashes)
    return [np.unique(small[bounds[i] : bounds[i + 1]]) for i in range(block.num_docs)]


def jaccard(a: str, b: str, near: Any) -> float:
    """Compare two texts exactly."""
    x, y = shingle_sets(block_of([a, b]), near)
    shared = len(np.intersect1d(x, y, assume_unique=True))
    return shared / max(len(x) + len(y) - shared, 1)
