"""Find long passages that occurred before, token by token the same: what a suffix array finds, by streams of hashes.

    windows = windows_of(texts, min_tokens)      # every run of 50 words, or 100 characters of a script without spaces
    anchors_of(windows)                          # about one position in 13

A window is cut when one with the same tokens stands earlier: in an earlier document, or earlier in this one. So what is
cut is the union of such windows, extended as far as they go, and the first copy stays: the result of a suffix array, but
with sorted runs on disk. To sort all windows would take 24 bytes a token, so anchors come first: of each 26 consecutive
25-grams the one with the smallest hash (winnowing, Schleimer et al. 2003). Any two equal windows of 50 tokens share an
anchor, so only windows around anchors that occur twice are sorted. Windows are equal when 128 bits of hash are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from llmpipe.dedup.runs import merged, opens
from llmpipe.text.block import BASE, Block, Rolling, blocks, fmix64
from llmpipe.text.characters import SINGLE, WORD

OLD = 1 << 63
"""Marks records of older generations."""
SECOND_SEED = np.uint64(0xA0761D6478BD642F)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of some documents, in order."""

    hashes: np.ndarray
    """(T,) uint64 as they stand."""
    docs: np.ndarray
    starts: np.ndarray
    """(T,) characters in the document."""
    ends: np.ndarray
    weights: np.ndarray
    """(T,) 2 for a word, 1 for a single character, 0 for punctuation."""


class Windows:
    """The windows that begin at each token of some documents."""

    def __init__(self, tokens: Tokens, min_tokens: int) -> None:
        self.tokens, self.min_tokens = tokens, min_tokens

    @cached_property
    def ends(self) -> np.ndarray:
        """(T,) one past the last token of the window that begins at each token; 0 where the document ends before."""
        tokens = self.tokens
        total = np.append(0, np.cumsum(tokens.weights, dtype=np.int64))
        ends = np.searchsorted(total, total[:-1] + 2 * self.min_tokens, side="left")
        whole = ends <= len(tokens.docs)
        whole[whole] = tokens.docs[ends[whole] - 1] == tokens.docs[whole]
        whole &= tokens.weights > 0  # a window begins with a word
        return np.where(whole, ends, 0)

    def hashes(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return two independent 64-bit hashes of the windows that begin at some tokens."""
        ends = self.ends[at]
        return _span_hashes(self.tokens.hashes, at, ends), _span_hashes(fmix64(self.tokens.hashes ^ SECOND_SEED), at, ends)

    @cached_property
    def anchors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return positions, ascending, and hashes of the selected n-grams."""
        size = self.min_tokens // 2
        span = self.min_tokens - size + 1  # consecutive n-grams of which one is selected
        hashes = Rolling(self.tokens.hashes).advance(size) if len(self.tokens.hashes) >= size else np.empty(0, np.uint64)
        if len(hashes) < span:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        # which n-gram has the least hash in each stretch: the position is packed below the hash
        bits = np.uint64(max(int(len(hashes) - 1).bit_length(), 1))
        packed = (hashes >> bits << bits) | np.arange(len(hashes), dtype=np.uint64)
        least = packed.copy()
        reach = 1
        while reach < span:  # minimum over `reach`, doubled
            step = min(reach, span - reach)
            least = np.minimum(least[: len(least) - step], least[step:])
            reach += step
        at = np.unique((least & np.uint64((1 << int(bits)) - 1)).astype(np.int64))
        inside = self.tokens.docs[at] == self.tokens.docs[at + size - 1]
        return at[inside], hashes[at[inside]]

    def around(self, at: np.ndarray) -> np.ndarray:
        """Return the tokens, ascending, at which a window begins that holds one of the anchors at `at`."""
        size = self.min_tokens // 2
        delta = np.zeros(len(self.tokens.docs) + 1, np.int64)
        # windows are at most 2 * min_tokens tokens long, and longer by their punctuation: ends[] decides
        first = np.searchsorted(np.maximum.accumulate(self.ends), at + size, side="left")
        np.add.at(delta, np.minimum(first, at), 1)
        np.add.at(delta, at + 1, -1)
        near = np.cumsum(delta)[:-1] > 0
        return np.flatnonzero(near & (self.ends > 0))


def windows_of(texts: Sequence[str], min_tokens: int) -> Iterator[tuple[int, Windows]]:
    """Yield `(number of the first document, Windows)` block by block."""
    for start, block in blocks(texts, inner_dots=False):
        yield start, Windows(_tokens(block), min_tokens)


def _tokens(block: Block) -> Tokens:
    base = block.doc_ends[block.token_docs] - block.num_chars[block.token_docs] - 1
    kinds = block.token_kinds
    return Tokens(
        hashes=block.raw_token_hashes,
        docs=block.token_docs,
        starts=block.token_starts - base,
        ends=block.token_ends - base,
        weights=np.where(kinds == WORD, 2, np.where(kinds == SINGLE, 1, 0)).astype(np.int8),
    )


def _span_hashes(hashes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hash the spans of tokens, wherever they lie: differences of a running polynomial, mod 2^64."""
    up = np.full(len(hashes) + 1, BASE, np.uint64)
    up[0] = 1
    np.cumprod(up, out=up)
    down = np.full(len(hashes) + 1, pow(BASE, -1, 1 << 64), np.uint64)
    down[0] = 1
    np.cumprod(down, out=down)
    total = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * up[:-1], out=total[1:])
    return fmix64((total[ends] - total[starts]) * down[starts])


def repeated_anchors(runs: Sequence[Path], old: Sequence[Path], *, partition_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield by ranges of hashes `(hashes, old rows)`: anchors of new documents that occur twice or in older ones, and those rows.

    Both kinds of runs hold (2, n): hash and row, one record an occurrence.
    """
    for part in merged([*old, *runs], partition_bytes=partition_bytes, marks=[OLD] * len(old) + [0] * len(runs)):
        is_old = (part[1] & np.uint64(OLD)) > 0
        first = opens(part[0])
        group = np.cumsum(first) - 1
        sizes, olds = np.bincount(group), np.bincount(group, is_old)
        wanted = (olds < sizes) & (sizes > 1)
        yield part[0][first][wanted], (part[1][wanted[group] & is_old] ^ np.uint64(OLD)).astype(np.int64)


def repeats(runs: Sequence[Path], *, partition_bytes: int) -> Iterator[np.ndarray]:
    """Yield (2, m): place (row << 32 | token) of windows that occurred before, and of their first occurrence.

    `runs` hold (3, n): hash, second hash, place; in order of places.
    """
    for part in merged(runs, partition_bytes=partition_bytes):
        part = part[:, np.lexsort((part[2], part[1], part[0]))]
        first = opens(part[0]) | opens(part[1])
        at = np.flatnonzero(first)
        source = part[2][at][np.cumsum(first) - 1]
        yield np.stack([part[2], source])[:, ~first]
