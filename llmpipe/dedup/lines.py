"""Find lines or paragraphs that many documents share, against counts frozen per generation.

    index/lines-GGGGG.npy     (2, n) uint64: hash and number of documents of every line of the generation's kept documents
    lines = lines_of(texts, hosts, config.lines)
    spans_to_cut(lines, rows, table, keep_first=True)       # (L,) bool

Counts of older generations add up; what a generation cuts depends on them and on itself, never on what comes later. Work
in memory is one range of hashes at a time (runs.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from llmpipe.dedup.index import read_npy
from llmpipe.dedup.runs import merged, opens
from llmpipe.text.block import Block, blocks, fmix64, hash_spans


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of some documents that may be cut, ascending."""

    hashes: np.ndarray
    """(L,) uint64 of the words, and of the host where that is the scope."""
    docs: np.ndarray
    starts: np.ndarray
    """(L,) characters in the document."""
    ends: np.ndarray


def lines_of(texts: Sequence[str], hosts: Sequence[int], config: Any) -> Lines:
    """Hash the lines or paragraphs that are long enough and have words."""
    parts = [_of_block(block, start, config) for start, block in blocks(texts, inner_dots=False)]
    hashes, docs, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (np.empty(0, np.int64),) * 4
    if config.scope == "host" and len(docs):
        hashes = fmix64(hashes + np.array(hosts, np.uint64)[docs])
    return Lines(hashes.astype(np.uint64), docs, starts, ends)


def host_of(url: str | None) -> int:
    host = urlsplit(url or "").netloc.lower()
    return int.from_bytes(hashlib.blake2b(host.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _of_block(block: Block, first_doc: int, config: Any) -> tuple[np.ndarray, ...]:
    starts, ends = block.line_spans
    docs, solid = block.line_docs, ~block.line_blank
    if config.unit == "paragraph":  # runs of lines that are not blank
        before = np.append(False, solid[:-1] & (docs[1:] == docs[:-1]))
        after = np.append(solid[1:] & (docs[1:] == docs[:-1]), False)
        first, last = np.flatnonzero(solid & ~before), np.flatnonzero(solid & ~after)
    else:
        first = last = np.flatnonzero(solid)
    starts, ends, docs = starts[first], ends[last], docs[first]
    words = block.word_starts
    tokens = block.hashes(block.tables.exact, words)
    at, stop = np.searchsorted(words, starts), np.searchsorted(words, ends)
    wanted = (stop > at) & (ends - starts >= config.min_chars)
    hashes = np.zeros(len(starts), np.uint64)
    some = stop > at
    hashes[some] = hash_spans(tokens, at[some])  # of consecutive runs: what has words fills all tokens
    base = block.doc_ends[docs] - block.num_chars[docs] - 1
    return hashes[wanted], docs[wanted] + first_doc, (starts - base)[wanted], (ends - base)[wanted]


def count_lines(runs: Sequence[Path], old: Sequence[Path], *, min_docs: int, partition_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Count the documents of each line over all units; yield by ranges of hashes `(counts, cuts)`, sorted.

    `runs` hold (2, n): hash and row, once per document. `counts` is (2, m): hash and number of documents. `cuts` is (2, k)
    of what stands in `min_docs`: hash, and the first row that has it plus 1, or 0 where an older generation has it.
    """
    for part in merged(runs, partition_bytes=partition_bytes):
        first = np.flatnonzero(opens(part[0]))
        hashes, counts = part[0][first], np.diff(np.append(first, part.shape[1])).astype(np.uint64)
        rows = part[1][first] + np.uint64(1)  # units come in order, so the first is the earliest
        before = old_counts(old, hashes)
        rows[before > 0] = 0
        cut = counts + before >= min_docs
        yield np.stack([hashes, counts]), np.stack([hashes[cut], rows[cut]])


def old_counts(paths: Sequence[Path], hashes: np.ndarray) -> np.ndarray:
    """Look sorted hashes up in the counts of older generations."""
    out = np.zeros(len(hashes), np.uint64)
    for path in paths:
        run = read_npy(path)
        low, high = np.searchsorted(run[0], hashes[0]), np.searchsorted(run[0], hashes[-1], side="right")
        keys, counts = np.array(run[0, low:high]), np.array(run[1, low:high])
        if len(keys):
            at = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
            out += np.where(keys[at] == hashes, counts[at], np.uint64(0))
    return out


def spans_to_cut(lines: Lines, numbers: Sequence[int], table: np.ndarray, *, keep_first: bool) -> np.ndarray:
    """(L,) whether each line is to be cut. `numbers` are the rows of the documents. Later copies in the first document go, too."""
    if not table.shape[1] or not len(lines.hashes):
        return np.zeros(len(lines.hashes), bool)
    at = np.minimum(np.searchsorted(table[0], lines.hashes), table.shape[1] - 1)
    cut = table[0][at] == lines.hashes
    if keep_first:
        own = np.array(numbers, np.uint64)[lines.docs] + np.uint64(1)
        home = cut & (table[1][at] == own)
        where = np.flatnonzero(home)
        _, first = np.unique(lines.hashes[where], return_index=True)  # the first copy in the document that keeps it
        cut[where[first]] = False
    return cut
