"""Find lines that stand on many pages of one site: menus, footers, notices.

    counts = count_lines(texts, domains, max_chars=300)           # one unit of work: a sorted table of (key, domain, docs)
    frozen = Frozen(merge(paths, settings))                       # the keys of lines that are boilerplate
    new = frozen.remove(texts, domains)                           # {number: text without them}

A first pass counts on how many documents of its domain each line stands, by 64-bit hashes of its tokens (indentation doesn't
count): a sorted run of 20 bytes a line and unit in `index/`. The runs are merged in ranges of keys, MERGE_ROWS rows at a time. What is
found is frozen for the generation: its documents are judged against the lines of all documents so far, earlier ones stay as
they are. So A then B removes from B what A+B would, while A keeps lines that only B shows to be boilerplate. Changed documents
are judged but not counted again.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.text.block import Block, HashSet, blocks, by_doc, fmix64

MERGE_ROWS = 4_000_000
_DOMAIN = np.uint64(0xA24BAED4963EE407)
_HOST = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(?:www\.)?([^/?#:]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boilerplate:
    """When a line is boilerplate of its domain: both thresholds must be reached."""

    min_docs: int = 10
    """Documents of one domain that hold the line."""
    min_share: float = 0.1
    """And their share of the domain's documents: on a large site ten pages may quote one line honestly."""
    max_chars: int = 300
    """Longer lines are text: they are left to dedup."""

    def __post_init__(self) -> None:
        if self.min_docs < 2:
            raise ValueError(f"min_docs: {self.min_docs} would remove lines that stand on one page; at least 2")


def domain_of(url: str | None, source: str | None) -> str:
    """Return the host without www., or the source of documents without one."""
    found = _HOST.match(url or "")
    return found[1].lower() if found else f"source {source or ''}"


class _Lines:
    """The short lines of some texts."""

    def __init__(self, block: Block, domains: Sequence[str], max_chars: int) -> None:
        starts, ends = block.line_spans
        self.numbers = np.flatnonzero((ends > starts) & (ends - starts <= max_chars))  # of lines in the block
        self.docs = block.line_docs[self.numbers]
        self.domains = _domain_hashes(domains)
        self._block = block

    @cached_property
    def keys(self) -> np.ndarray:
        """uint64 of domain and line."""
        solid = np.flatnonzero(~self._block.line_blank)
        hashes = self._block.span_hashes(self._block.line_first_tokens[:-1][solid])[np.searchsorted(solid, self.numbers)]
        return fmix64(hashes + self.domains[self.docs] * _DOMAIN)


def _domain_hashes(domains: Sequence[str]) -> np.ndarray:
    block = Block([f"{d} ." for d in domains])
    return block.span_hashes(np.searchsorted(block.token_docs, np.arange(len(domains))))


def count_lines(texts: Sequence[str], domains: Sequence[str], *, max_chars: int) -> pa.Table:
    """Count, once a document, the lines of each domain. A row whose key is its domain counts the domain's documents."""
    keys, owners = [], []
    for start, block in blocks(texts):
        lines = _Lines(block, domains[start : start + block.num_docs], max_chars)
        once = np.unique(by_doc(lines.keys, lines.docs), return_index=True)[1] if len(lines.docs) else np.empty(0, np.int64)
        keys += [lines.keys[once] if len(once) else np.empty(0, np.uint64), lines.domains]
        owners += [lines.domains[lines.docs[once]], lines.domains]
    return _summed([(np.concatenate(keys), np.concatenate(owners), np.ones(sum(map(len, keys)), np.int64))] if keys else [])


def _summed(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> pa.Table:
    key, domain, docs = (np.concatenate(column) if parts else np.empty(0, np.uint64) for column in zip(*parts, strict=True)) if parts else (np.empty(0, np.uint64),) * 3
    unique, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return pa.table({"key": unique, "domain": domain[first], "docs": np.bincount(inverse, docs, minlength=len(unique)).astype(np.uint32)})


def merge(paths: Sequence[Path], settings: Boilerplate) -> pa.Table:
    """Return the boilerplate (`key` sorted, `domain`, `docs`) of sorted runs, the domains' own rows left out."""
    rows = sum(pq.read_metadata(p).num_rows for p in paths)
    totals = _domain_totals(paths)
    found = []
    ranges = -(-rows // MERGE_ROWS)
    bounds = [(i << 64) // max(ranges, 1) for i in range(ranges + 1)]
    for low, high in itertools.pairwise(bounds):
        table = _summed([part for path in paths for part in _slice(path, low, high)])
        key, domain, docs = (table.column(name).to_numpy() for name in ("key", "domain", "docs"))
        whole = totals.docs_of(domain)
        found.append(table.filter(pa.array((docs >= settings.min_docs) & (docs >= settings.min_share * whole) & (key != domain))))
    return pa.concat_tables(found) if found else _summed([])


def _slice(path: Path, low: int, high: int) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    table = pq.read_table(path)
    key = table.column("key").to_numpy()
    start = int(np.searchsorted(key, np.uint64(low)))
    end = len(key) if high >= 2**64 else int(np.searchsorted(key, np.uint64(high)))
    if end > start:
        yield key[start:end], table.column("domain").to_numpy()[start:end], table.column("docs").to_numpy()[start:end].astype(np.int64)


class _Totals:
    def __init__(self, domains: np.ndarray, docs: np.ndarray) -> None:
        self._domains, self._docs = domains, docs

    def docs_of(self, domains: np.ndarray) -> np.ndarray:
        return self._docs[np.searchsorted(self._domains, domains)]


def _domain_totals(paths: Sequence[Path]) -> _Totals:
    parts = []
    for path in paths:
        for key, domain, docs in _slice(path, 0, 2**64):
            own = key == domain
            parts.append((key[own], domain[own], docs[own]))
    table = _summed(parts)
    return _Totals(table.column("key").to_numpy(), table.column("docs").to_numpy())


class Frozen:
    """What is boilerplate for one generation."""

    def __init__(self, keys: np.ndarray, *, max_chars: int) -> None:
        self._set, self._max_chars = HashSet(keys), max_chars

    def remove(self, texts: Sequence[str], domains: Sequence[str]) -> tuple[dict[int, str], np.ndarray]:
        """Return the new texts of the documents that lose lines, by number, and (D,) how many lines each loses."""
        out: dict[int, str] = {}
        lost = np.zeros(len(texts), np.int64)
        for start, block in blocks(texts):
            lines = _Lines(block, domains[start : start + block.num_docs], self._max_chars)
            if not len(lines.numbers):
                continue
            hits = np.sort(self._set.find(lines.keys)[0])
            lost[start : start + block.num_docs] = block.per_doc(lines.docs[hits])
            first = np.searchsorted(block.line_docs, np.arange(block.num_docs))
            for doc in np.unique(lines.docs[hits]).tolist():
                gone = set((lines.numbers[hits[lines.docs[hits] == doc]] - first[doc]).tolist())
                kept = [line for i, line in enumerate(block.texts[doc].split("\n")) if i not in gone]
                out[start + doc] = re.sub("\n{4,}", "\n\n\n", "\n".join(kept)).strip("\n").rstrip()
        return out, lost
