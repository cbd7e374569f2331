"""Find which documents may be near-duplicates of which: equal band keys, among new documents and in older generations.

    found = find_runs(keys, valid, old)       # keys: (num_bands, D) of the new documents
    found.runs_of(7), found.old_of(run)

A run is a set of documents that share one band's key. Work is one sort per band; older generations are sorted on disk and
only searched, at a cost in proportion to what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK = 1 << 16
MAX_RUN = 1_000
"""Documents taken from one run. Longer ones are templates: thousands of pages that share their frame."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """The band keys of a generation's kept documents, sorted per band; memory-mapped."""

    keys: np.ndarray
    """(num_bands, n) uint32."""
    rows: np.ndarray
    """(num_bands, n) uint32: the row of the document in its generation."""
    offset: int
    """The number of the generation's first row over all generations."""


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of two or more documents, as compressed tables."""

    starts: np.ndarray
    """(D + 1,) where the runs of document i begin in `runs`."""
    runs: np.ndarray
    """Run numbers by document; int32."""
    member_starts: np.ndarray
    """(R + 1,) where the new documents of run r begin in `members`."""
    members: np.ndarray
    """Documents by run, ascending in each; int32."""
    old_starts: np.ndarray
    """(R + 1,) where the old documents of run r begin in `old`."""
    old: np.ndarray
    """Rows over all older generations."""

    def runs_of(self, doc: int) -> list[int]:
        return self.runs[self.starts[doc] : self.starts[doc + 1]].tolist()

    def old_of(self, run: int) -> list[int]:
        return self.old[self.old_starts[run] : self.old_starts[run + 1]].tolist()

    def before(self, run: int, doc: int) -> np.ndarray:
        """Return the new documents of a run that come before one of them."""
        own = self.members[self.member_starts[run] : self.member_starts[run + 1]]
        return own[: np.searchsorted(own, doc)]

    def docs(self) -> np.ndarray:
        """Documents in any run."""
        return np.flatnonzero(np.diff(self.starts))

    def neighbours(self) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        """Yield pairs `(documents, others, others are old rows)` that are the likeliest of each run: with its first, and with the one before."""
        low = 0
        while low < len(self.member_starts) - 1:  # some runs at a time
            high = max(int(np.searchsorted(self.member_starts, self.member_starts[low] + CHUNK, side="right")) - 1, low + 1)
            starts = self.member_starts[low : high + 1]
            docs = self.members[starts[0] : starts[-1]].astype(np.int64)
            runs = np.repeat(np.arange(low, high), np.diff(starts))
            first = docs[np.repeat(starts[:-1] - starts[0], np.diff(starts))]
            inner = np.flatnonzero(runs[1:] == runs[:-1]) + 1
            yield docs[inner], first[inner], False
            yield docs[inner], docs[inner - 1], False
            found = np.flatnonzero(self.old_starts[runs + 1] > self.old_starts[runs])
            yield docs[found], self.old[self.old_starts[runs[found]]], True
            yield docs[found], self.old[self.old_starts[runs[found] + 1] - 1], True
            low = high


def find_runs(keys: np.ndarray, valid: np.ndarray, old: Sequence[Sorted]) -> Runs:
    """Group new documents (only those marked valid: with shingles) by equal keys, and look them up in older generations."""
    num_docs = keys.shape[1]
    doc_parts, run_parts, old_runs, old_rows = [], [], [], []
    count = 0
    where = np.flatnonzero(valid)
    for band in range(keys.shape[0]):
        own = keys[band, where]
        order = np.argsort(own, kind="stable")
        ranked = own[order]
        opens = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if len(ranked) else np.empty(0, np.int64)
        sizes = np.diff(np.append(opens, len(ranked)))
        unique = ranked[opens]
        matched = np.zeros(len(unique), bool)
        hits: list[tuple[np.ndarray, np.ndarray]] = []
        for generation in old:
            left = np.searchsorted(generation.keys[band], unique, side="left")
            right = np.searchsorted(generation.keys[band], unique, side="right")
            found = np.flatnonzero(right > left)
            matched[found] = True
            lengths = np.minimum(right - left, MAX_RUN)[found]
            places = np.repeat(left[found] - np.append(0, np.cumsum(lengths)[:-1]), lengths) + np.arange(lengths.sum())
            hits.append((np.repeat(found, lengths), generation.rows[band][places].astype(np.int64) + generation.offset))
        wanted = (sizes >= 2) | matched
        number = np.cumsum(wanted) - 1 + count  # of a run that is wanted
        in_run = np.repeat(wanted, sizes)
        doc_parts.append(where[order[in_run]].astype(np.int32))
        run_parts.append(np.repeat(number, sizes)[in_run].astype(np.int32))
        for run, rows in hits:
            old_runs.append(number[run])
            old_rows.append(rows)
        count += int(wanted.sum())
    docs, runs = np.concatenate(doc_parts), np.concatenate(run_parts)
    by_run = np.lexsort((docs, runs)).astype(np.int32)
    members, member_starts = docs[by_run], np.searchsorted(runs[by_run], np.arange(count + 1))
    del by_run
    order = np.argsort(docs, kind="stable")
    old_run = np.concatenate(old_runs) if old_runs else np.empty(0, np.int64)
    old_row = np.concatenate(old_rows) if old_rows else np.empty(0, np.int64)
    old_order = np.argsort(old_run, kind="stable")
    return Runs(
        starts=np.searchsorted(docs[order], np.arange(num_docs + 1)),
        runs=runs[order],
        member_starts=member_starts,
        members=members,
        old_starts=np.searchsorted(old_run[old_order], np.arange(count + 1)),
        old=old_row[old_order],
    )


def sort_bands(keys: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort each band's keys, (num_bands, n), of the documents `rows`, (n,): what a generation leaves for later ones."""
    order = np.argsort(keys, axis=1, kind="stable")
    return np.take_along_axis(keys, order, axis=1), rows.astype(np.uint32)[order]
