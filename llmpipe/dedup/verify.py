"""Compute the exact Jaccard similarity of candidates from their texts.

    with ShingleSets(config.near, work, rows) as sets:
        sets.load(wanted)                # many at once, in worker processes
        sets.similarity(a, b)            # of two rows; what was not loaded is read then

A set is the sorted distinct shingles of a document with case and width folded but accents and digits kept, 4 bytes each,
in scratch files below `state/`: about 4 KB a candidate on disk, nothing of it in memory. A document of a script without
spaces has a second one, of characters alone, by which two such documents are compared.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmpipe.data.docs import DocUnit
from llmpipe.dedup.index import AGAIN, Rows, locate
from llmpipe.dedup.minhash import hashes32
from llmpipe.dedup.shingles import block_of, character_shingles, prepare, shingles, wide_docs
from llmpipe.executor import map_units
from llmpipe.text.block import Block, blocks
from llmpipe.work import Work

Span = tuple[str, int, int, int]
"""(file, offset, shingles, shingles of characters alone)."""
MAX_OPEN = 64
MIN_PARALLEL = 500
"""Fewer documents are read here: starting workers takes longer."""


class ShingleSets:
    """The shingle sets of rows, in scratch files that are removed at the end (and after a kill, by the next run)."""

    def __init__(self, near: Any, work: Work, rows: Rows) -> None:
        self._near, self._work, self._rows = near, work, rows
        self._folder = work.output / "state" / "sets"
        self._spans: dict[int, Span] = {}
        self._open: dict[str, int] = {}

    def __enter__(self) -> ShingleSets:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
        shutil.rmtree(self._folder)

    def load(self, wanted: np.ndarray) -> None:
        """Read the texts of rows once, row group by row group, in parallel."""
        jobs: dict[str, list[int]] = defaultdict(list)
        for row in wanted.tolist():
            jobs[self._rows.name_of(row).removeprefix(AGAIN)].append(row)
        units = [self._job(name, own) for name, own in sorted(jobs.items())]
        workers = self._work.workers if len(wanted) >= MIN_PARALLEL else 1
        call = partial(write_sets, near=self._near)
        for done, (_, spans) in enumerate(map_units(call, units, workers=workers, pool=self._work.pool)):
            self._spans.update(spans)
            self._work.progress.update(done + 1, len(units), phase="compare")

    def similarity(self, a: int, b: int) -> float:
        wide = self._span(a)[3] > 0 < self._span(b)[3]
        x, y = self._read(a, wide), self._read(b, wide)
        both = np.concatenate((x, y))
        both.sort(kind="stable")  # two sorted runs: a merge
        shared = int((both[1:] == both[:-1]).sum())
        return shared / (len(x) + len(y) - shared) if shared else 0.0

    def _job(self, name: str, rows: list[int]) -> tuple[DocUnit, dict[int, int], Path]:
        return locate(self._work, name), {int(self._rows.rows[row]): row for row in rows}, self._folder / f"{len(self._spans)}-{name}"

    def _span(self, row: int) -> Span:
        if row not in self._spans:
            self._spans.update(write_sets(self._job(self._rows.name_of(row).removeprefix(AGAIN), [row]), near=self._near))
        return self._spans[row]

    def _read(self, row: int, wide: bool) -> np.ndarray:
        name, offset, length, wide_length = self._span(row)
        fd = self._open.get(name)
        if fd is None:
            if len(self._open) >= MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            fd = self._open[name] = os.open(self._folder / name, os.O_RDONLY)
        if wide:
            offset, length = offset + 4 * length, wide_length
        return np.frombuffer(os.pread(fd, 4 * length, offset), np.uint32)


def write_sets(job: tuple[DocUnit, dict[int, int], Path], *, near: Any) -> dict[int, Span]:
    """Write the sets of some rows of a unit, {row in the unit: row}, to a file; return where they are, by row."""
    unit, numbers, path = job
    rows = sorted(numbers)
    texts = unit.read(["text"]).column("text").take(pa.array(rows, pa.int64())).to_pylist()
    spans, size = {}, 0
    with open(path, "wb") as f:
        for start, block in blocks([prepare(t) for t in texts], inner_dots=False):
            for k, (own, characters) in enumerate(shingle_sets(block, near)):
                spans[numbers[rows[start + k]]] = (path.name, size, len(own), len(characters))
                f.write(own.tobytes() + characters.tobytes())
                size += own.nbytes + characters.nbytes
    return spans


def shingle_sets(block: Block, near: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each document's distinct shingles, sorted, as uint32; and those of characters alone, where it has a script without spaces."""
    both = _distinct(*shingles(block, block.tables.exact, words=near.ngram, characters=near.char_ngram), block.num_docs)
    wide = wide_docs(block)
    if not wide.any():
        return [(own, np.empty(0, np.uint32)) for own in both]
    hashes, docs = character_shingles(block, near.char_ngram)
    characters = _distinct(hashes[wide[docs]], docs[wide[docs]], block.num_docs)
    return list(zip(both, characters, strict=True))


def _distinct(hashes: np.ndarray, docs: np.ndarray, num_docs: int) -> list[np.ndarray]:
    bounds = np.searchsorted(docs, np.arange(num_docs + 1))
    small = hashes32(hashes)
    out = []
    for i in range(num_docs):
        own = small[bounds[i] : bounds[i + 1]]
        own.sort()
        out.append(own[np.append(True, own[1:] != own[:-1])] if len(own) else own)
    return out


def jaccard(a: str, b: str, near: Any) -> float:
    """Compare two texts exactly."""
    (x, wide_x), (y, wide_y) = shingle_sets(block_of([a, b]), near)
    if len(wide_x) and len(wide_y):
        x, y = wide_x, wide_y
    shared = len(np.intersect1d(x, y, assume_unique=True))
    return shared / max(len(x) + len(y) - shared, 1)
