"""Count the words of a list in a block of documents, and drop those with too many: bad words, by a list or built in.

    checks = BadWords(max_share=0.01)(stats)

Words and phrases are compared by the hashes of their tokens, all documents of a block at once. A token is a whole word
where a script has spaces, so `ass` is not found in `class`, and one character in Chinese or Japanese, so a phrase is found
wherever its characters stand; there a list of longer phrases says where it means nothing (性交 in 个性交流).
Case and width do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from llmpipe.clean.language import CHARS_PER_WORD
from llmpipe.clean.rules import Check
from llmpipe.clean.statistics import Stats
from llmpipe.clean.urls import read_list
from llmpipe.clean.word_lists import ALLOWED, BAD_WORDS
from llmpipe.text.block import BASE, Block, Rolling
from llmpipe.text.characters import SINGLE, fmix64

MAX_TOKENS = 24
LOW = 0xFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class BadWords:
    """Words and phrases of a list (pornography, gambling, slurs), by their share of the words or their number."""

    files: list[Path] = field(default_factory=list)
    """Lists with one word or phrase a line; `#` opens a comment, `!` a phrase in which a word of the list means nothing bad."""
    builtin: bool = True
    """The short English and Chinese lists that llmpipe brings along; each word counts in documents of any language."""
    max_share: float | None = 0.01
    """Drop a document when more than this share of its words are on the list; null: no limit."""
    max_count: int | None = None
    """Drop a document with more hits than this; C4 drops at the first (0)."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        counts, words = count_words(stats, _matcher(tuple(map(str, self.files)), self.builtin))
        share = words / np.maximum(stats.num_words, 1e-9)
        if self.max_share is not None:
            yield Check("bad_words.max_share", "bad_word_share", share, self.max_share, share > self.max_share)
        if self.max_count is not None:
            yield Check("bad_words.max_count", "bad_words", counts, self.max_count, counts > self.max_count)


@dataclass(frozen=True, slots=True)
class Phrases:
    """Hashes of phrases to look up in a block."""

    by_length: dict[int, np.ndarray]
    """Sorted, by the number of tokens."""
    openings: np.ndarray
    """(65536,) bool by the low bits of a token's hash: whether a phrase may begin with it. Leaves one token in a hundred to look at."""

    @classmethod
    def of(cls, phrases: Sequence[str]) -> Phrases:
        by_length: dict[int, set[int]] = {}
        openings = np.zeros(1 << 16, bool)
        for phrase in phrases:
            block = Block([phrase])
            hashes = block.hashes(block.tables.exact, block.word_starts)
            n = len(hashes)
            if 0 < n <= MAX_TOKENS:
                openings[int(hashes[0]) & LOW] = True
                by_length.setdefault(n, set()).add(int(Rolling(hashes).advance(n)[0]))
        return cls({n: np.array(sorted(found), np.uint64) for n, found in sorted(by_length.items())}, openings)

    def find(self, hashes: np.ndarray, docs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield for each length the numbers of the tokens at which a phrase begins."""
        at = np.flatnonzero(self.openings[(hashes & np.uint64(LOW)).astype(np.intp)])
        total = hashes[at]
        for n in range(1, max(self.by_length, default=0) + 1):
            if n > 1:
                at_end = at + n - 1
                inside = at_end < len(hashes)
                inside[inside] = docs[at_end[inside]] == docs[at[inside]]
                at = at[inside]
                total = total[inside] * np.uint64(BASE) + hashes[at + n - 1]
            known = self.by_length.get(n)
            if known is not None and len(at):
                grams = fmix64(total.copy())
                place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
                yield n, at[known[place] == grams]


@dataclass(frozen=True, slots=True)
class Matcher:
    bad: Phrases
    allowed: Phrases

    @classmethod
    def of(cls, bad: Sequence[str], allowed: Sequence[str] = ()) -> Matcher:
        return cls(Phrases.of(bad), Phrases.of(allowed))


@cache
def _matcher(files: tuple[str, ...], builtin: bool) -> Matcher:
    lines = [line for name in files for _, line in read_list(Path(name))]
    bad = [line for line in lines if not line.startswith("!")]
    allowed = [line[1:] for line in lines if line.startswith("!")]
    if builtin:
        bad += [w for words in BAD_WORDS.values() for w in words]
        allowed += [w for words in ALLOWED.values() for w in words]
    return Matcher.of(bad, allowed)


def count_words(stats: Stats, matcher: Matcher) -> tuple[np.ndarray, np.ndarray]:
    """Return (D,) hits and (D,) words that they cover. A hit inside an allowed phrase does not count; each token counts once."""
    block = stats.block
    starts = block.word_starts
    hits, covered = np.zeros(block.num_docs), np.zeros(len(starts), bool)
    if not len(starts):
        return hits, hits
    docs = np.searchsorted(block.doc_ends, starts, side="right")
    hashes = block.hashes(block.tables.exact, starts)
    shielded = np.zeros(len(starts), bool)
    for n, at in matcher.allowed.find(hashes, docs):
        for k in range(n):
            shielded[at + k] = True
    for n, at in matcher.bad.find(hashes, docs):
        at = at[~(shielded[at] & shielded[at + n - 1])]
        hits += block.per_doc(docs[at])
        for k in range(n):
            covered[at + k] = True
    weights = np.where(block.kinds[starts] == SINGLE, 1 / CHARS_PER_WORD, 1.0)
    return hits, block.per_doc(docs, covered * weights)
