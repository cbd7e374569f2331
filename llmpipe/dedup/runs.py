"""Sorted runs on disk: bring together equal hashes from many units with bounded memory.

    write_run(path, records)                               # (k, n) uint64, row 0 a hash
    for part in merged(paths, partition_bytes=1 << 28): ...    # (k, m), all records of a range of hashes, sorted

Hashes are uniform, so equal ranges of them hold about equally many records; each range is sorted in memory on its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from llmpipe.dedup.index import read_npy


def write_run(path: Path, records: np.ndarray) -> None:
    """Sort records by hash, then in the order given, and write them."""
    with open(path, "wb") as f:
        np.save(f, np.ascontiguousarray(records[:, np.argsort(records[0], kind="stable")]), allow_pickle=False)


def merged(paths: Sequence[Path], *, partition_bytes: int, marks: Sequence[int] = ()) -> Iterator[np.ndarray]:
    """Yield the records of all runs by ranges of hashes, sorted by hash and then by run: ascending in what runs ascend in.

    `marks` are bits to set in the second row of each run's records, to tell runs apart.
    """
    size = sum(path.stat().st_size for path in paths)
    parts = max(-(-size // partition_bytes), 1)
    bounds = [(1 << 64) * k // parts for k in range(1, parts)]
    last = dict.fromkeys(paths, 0)
    for bound in [*bounds, None]:
        pieces = []
        for number, path in enumerate(paths):
            run = read_npy(path)  # opened for one slice at a time: nothing stays mapped
            stop = run.shape[1] if bound is None else int(np.searchsorted(run[0], np.uint64(bound)))
            pieces.append(np.array(run[:, last[path] : stop]))
            last[path] = stop
            if marks:
                pieces[-1][1] |= np.uint64(marks[number])
        both = np.concatenate(pieces, axis=1) if pieces else np.empty((1, 0), np.uint64)
        if both.shape[1]:
            yield both[:, np.argsort(both[0], kind="stable")]


def opens(hashes: np.ndarray) -> np.ndarray:
    """(n,) whether each of the sorted hashes is the first of its kind."""
    out = np.ones(len(hashes), bool)
    out[1:] = hashes[1:] != hashes[:-1]
    return out


class Columns:
    """An array (k, n) uint64 that grows on disk, part by part, and becomes one .npy file in the end."""

    def __init__(self, folder: Path, name: str, num_rows: int) -> None:
        self._paths = [folder / f"{name}.{k}.raw" for k in range(num_rows)]
        self._files = [open(path, "wb") for path in self._paths]
        self.size = 0

    def add(self, part: np.ndarray) -> None:
        for file, row in zip(self._files, part, strict=True):
            file.write(np.ascontiguousarray(row).tobytes())
        self.size += part.shape[1]

    def save(self, path: Path) -> None:
        for file in self._files:
            file.close()
        with open(path, "wb") as out:
            np.lib.format.write_array_header_1_0(out, {"descr": "<u8", "fortran_order": False, "shape": (len(self._paths), self.size)})
            for raw in self._paths:
                with open(raw, "rb") as f:
                    shutil.copyfileobj(f, out)
                raw.unlink()
