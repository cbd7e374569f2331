"""Measure a block of documents: the numbers that filters compare with their thresholds.

    stats = Stats(Block(texts), languages)
    stats.num_words, stats.dup_line_frac, stats.top_gram(2), …      # (D,) float64 each, computed when first asked for

"Words" of scripts without spaces are estimated as characters / 1.6 (Han characters per word), so that thresholds published
for segmented Chinese hold without a segmenter; n-grams of words become n-grams of 1.6 n characters there. Given equal
tokens, every value equals datatrove's but where docs/cleaning.md says why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from llmpipe.clean.language import CHARS_PER_WORD, profile
from llmpipe.text.block import DOT, NEWLINE, Block, HashSet, Rolling, by_doc, group_equal, hash_spans
from llmpipe.text.characters import ALPHA, CLOSING, ELLIPSIS, SENTENCE, SINGLE, SPACE, TERMINAL, WORD, fmix64


class Stats:
    """Measurements of D documents. Shapes as in Block."""

    def __init__(self, block: Block, languages: Sequence[str]) -> None:
        self.block, self.languages = block, list(languages)
        self.profiles = [profile(code) for code in languages]
        self.unspaced = np.array([p in ("zh", "characters") for p in self.profiles], bool)  # (D,)
        self.cache: dict[Any, Any] = {}  # what filters keep between their checks and their rewriting

    def get(self, statistic: str, owner: Any = None) -> np.ndarray:
        """(D,) a statistic by the name that the values table has for it. `owner` is the filter that asks: some depend on its settings."""
        if (own := getattr(owner, "MEASURES", {}).get(statistic)) is not None:
            return own(owner, self)
        kind, _, rest = statistic.partition("_")
        if kind in ("top", "dup") and rest.endswith("_gram"):
            n = int(rest.removesuffix("_gram"))
            return self.top_gram(n) if kind == "top" else self.dup_gram(n)
        return getattr(self, statistic)

    # --- words ---

    @cached_property
    def _flags(self) -> np.ndarray:
        return self.block.tables.flags.take(self.block.code_points, mode="clip")

    @cached_property
    def _token_weights(self) -> np.ndarray:
        """(T,) how many words a token counts for: 1, or 1/1.6 for a character of a script without spaces."""
        return np.where(self.block.token_kinds == SINGLE, 1 / CHARS_PER_WORD, 1.0)

    @cached_property
    def word_weights(self) -> np.ndarray:
        """(T,) the same, 0 for punctuation."""
        return self._token_weights * self._is_word

    @cached_property
    def lower(self) -> str:
        """The block's documents in lower case, position by position as in the block."""
        joined = "\n".join(self.block.texts) + "\n"
        return joined.replace("\u0130", "i").lower()  # İ alone becomes two code points

    @cached_property
    def lines_ending_in_dots(self) -> np.ndarray:
        """(lines that are not blank,) bool: they end in `...`."""
        return self._ends_in_ellipsis(dots_only=True)

    @cached_property
    def _is_word(self) -> np.ndarray:
        kinds = self.block.token_kinds
        return (kinds == WORD) | (kinds == SINGLE)

    @property
    def num_docs(self) -> int:
        return self.block.num_docs

    @cached_property
    def num_chars(self) -> np.ndarray:
        return self.block.num_chars.astype(float)

    @cached_property
    def num_words(self) -> np.ndarray:
        """Words without punctuation."""
        return self.block.per_doc(self.block.token_docs, self.word_weights)

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Words and punctuation: what datatrove calls words in its ratios."""
        return self.block.per_doc(self.block.token_docs, self._token_weights)

    @cached_property
    def mean_word_length(self) -> np.ndarray:
        return self.block.per_doc(self.block.token_docs, self.block.token_lengths * self._is_word) / np.maximum(self.num_words, 1e-9)

    @cached_property
    def alpha_words(self) -> np.ndarray:
        """Share of tokens, punctuation included, with at least one letter."""
        block = self.block
        starts = block.token_starts
        if not len(starts):
            return np.zeros(block.num_docs)
        # a word of letters nearly always shows in its first code point; those that open with a digit or _ are looked at in full
        alpha = (self._flags[starts] & ALPHA) != 0
        unsure = np.flatnonzero(~alpha & (block.token_kinds == WORD) & (block.token_lengths > 1))
        if len(unsure):
            ends, bounds = block.token_ends[unsure], np.cumsum((self._flags & ALPHA) != 0)
            alpha[unsure] = bounds[ends - 1] > bounds[starts[unsure]]
        return block.per_doc(block.token_docs, self._token_weights * alpha) / np.maximum(self.num_tokens, 1e-9)

    @cached_property
    def hash_ratio(self) -> np.ndarray:
        """`#` by tokens."""
        return self._code_points_per_doc(self.block.code_points == ord("#")) / np.maximum(self.num_tokens, 1e-9)

    @cached_property
    def ellipsis_ratio(self) -> np.ndarray:
        """`...` and `…` by tokens."""
        block = self.block
        dots = np.flatnonzero(block.code_points == DOT)
        opens = np.flatnonzero(np.diff(dots, prepend=-2) > 1)
        docs = np.searchsorted(block.doc_ends, dots[opens], side="right")
        three = block.per_doc(docs, np.diff(np.append(opens, len(dots))) // 3)
        return (three + self._code_points_per_doc(block.code_points == ord("…"))) / np.maximum(self.num_tokens, 1e-9)

    def stop_words(self, words: Sequence[str], *, distinct: bool = True) -> np.ndarray:
        """How many different ones of `words` a document holds, as they are spelled; not `distinct`: every occurrence counts."""
        hashes = Block(words).raw_token_hashes
        if len(hashes) != len(words):
            raise ValueError(f"stop words must be single tokens; one of {', '.join(words)} is not")
        hits, at = HashSet(hashes).find(self.block.raw_token_hashes)
        pairs = self.block.token_docs[hits] * len(hashes) + at
        return self.block.per_doc((np.unique(pairs) if distinct else pairs) // len(hashes)).astype(float)

    @cached_property
    def replacement_ratio(self) -> np.ndarray:
        """U+FFFD, left by a wrong decoding, by characters."""
        return self._code_points_per_doc(self.block.code_points == 0xFFFD) / np.maximum(self.num_chars, 1)

    def _code_points_per_doc(self, mask: np.ndarray) -> np.ndarray:
        return self.block.per_doc(np.searchsorted(self.block.doc_ends, np.flatnonzero(mask), side="right")).astype(float)

    # --- lines ---

    @cached_property
    def solid_lines(self) -> np.ndarray:
        """Numbers of the lines that are not blank."""
        return np.flatnonzero(~self.block.line_blank)

    @cached_property
    def line_spans(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(lines that are not blank,): start and end without the white space around, and document."""
        starts, ends = self.block.line_spans
        return starts[self.solid_lines], ends[self.solid_lines], self.block.line_docs[self.solid_lines]

    @cached_property
    def _raw_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """(lines that are not blank,): start with the indentation, and length."""
        ends = self.block._newlines
        starts = np.concatenate(([0], ends[:-1] + 1))
        return starts[self.solid_lines], (ends - starts)[self.solid_lines]

    @cached_property
    def line_words(self) -> np.ndarray:
        """(lines that are not blank,) words: what white space divides; in unspaced scripts the estimate from characters."""
        starts, ends, docs = self.line_spans
        at = self.space_words
        words = (np.searchsorted(at, ends) - np.searchsorted(at, starts)).astype(float)
        unspaced = self.unspaced[docs]
        if unspaced.any():
            words[unspaced] = np.add.reduceat(self.word_weights, self.block.line_first_tokens[:-1][self.solid_lines])[unspaced]
        return words

    @cached_property
    def space_words(self) -> np.ndarray:
        """Starts of what white space divides."""
        solid = self.block.kinds != SPACE
        solid[1:] &= ~solid[:-1]
        return np.flatnonzero(solid)

    def line_share(self, flag: int) -> np.ndarray:
        """(lines that are not blank,) the share of characters with a flag (UPPER, DIGIT), white space around left out."""
        starts, ends, _ = self.line_spans
        at = np.flatnonzero(self._flags & flag)
        return (np.searchsorted(at, ends) - np.searchsorted(at, starts)) / np.maximum(ends - starts, 1)

    @cached_property
    def num_lines(self) -> np.ndarray:
        """(D,) lines, blank ones too."""
        return self.block.per_doc(self.block.line_docs)

    def _share_of_solid(self, mask: np.ndarray) -> np.ndarray:
        docs = self.line_spans[2]
        return self.block.per_doc(docs, mask.astype(float)) / np.maximum(self.block.per_doc(docs), 1)

    def _share_of_all(self, mask: np.ndarray) -> np.ndarray:
        return self.block.per_doc(self.line_spans[2], mask.astype(float)) / self.num_lines

    def bullet_lines(self, bullets: str) -> np.ndarray:
        """Share of all lines, blank ones too, that start with one of `bullets`."""
        return self._share_of_all(np.isin(self.block.code_points[self.line_spans[0]], [ord(c) for c in bullets]))

    @cached_property
    def ellipsis_lines(self) -> np.ndarray:
        """Share of all lines, blank ones too, that end in `...` or `…`."""
        return self._share_of_all(self._ends_in_ellipsis(dots_only=False))

    def _ends_in_ellipsis(self, *, dots_only: bool) -> np.ndarray:
        """(lines that are not blank,) bool."""
        starts, ends, _ = self.line_spans
        cp, dot = self.block.code_points, ord(".")
        dots = (ends - starts >= 3) & (cp[ends - 1] == dot) & (cp[ends - 2] == dot) & (cp[ends - 3] == dot)
        return dots if dots_only else dots | ((self._flags[ends - 1] & ELLIPSIS) != 0)

    @cached_property
    def punctuated_lines(self) -> np.ndarray:
        """Share of the lines that are not blank that end in terminal punctuation."""
        return self._share_of_solid((self._flags[self.line_spans[1] - 1] & TERMINAL) != 0)

    def short_lines(self, max_chars: int) -> np.ndarray:
        """Share of the lines that are not blank with at most so many characters, indentation included."""
        return self._share_of_solid(self._raw_lines[1] <= max_chars)

    @cached_property
    def newline_ratio(self) -> np.ndarray:
        """Newlines by tokens."""
        return (self.num_lines - 1.0) / np.maximum(self.num_tokens, 1e-9)

    def long_line(self, rank: int) -> np.ndarray:
        """Characters of the rank-th longest line; 0 where there are fewer lines."""
        docs, lengths = self.line_spans[2], self._raw_lines[1]
        order = np.lexsort((-lengths, docs))
        counts = self.block.per_doc(docs)
        first = np.concatenate(([0], np.cumsum(counts)[:-1]))
        enough = counts >= rank
        out = np.zeros(self.block.num_docs)
        out[enough] = lengths[order[first[enough] + rank - 1]]
        return out

    @cached_property
    def num_sentences(self) -> np.ndarray:
        return self.block.per_doc(self.line_spans[2], self.line_sentences.astype(float))

    @cached_property
    def line_sentences(self) -> np.ndarray:
        """(lines that are not blank,) sentences: a terminator before white space or the line's end closes one, and so does the line's end."""
        flags, block = self._flags, self.block
        at = np.flatnonzero(flags & SENTENCE)
        after = np.minimum(at + 1, len(flags) - 1)
        quoted = (flags[after] & CLOSING) != 0
        beyond = np.where(quoted, np.minimum(at + 2, len(flags) - 1), after)
        wide = block.code_points[at] >= 0x2000  # 。！？ need no space after them
        closes = at[((block.kinds[beyond] == SPACE) | wide) & (flags[after] & SENTENCE == 0)]
        starts, ends, _ = self.line_spans
        inside = np.searchsorted(closes, ends - 2) - np.searchsorted(closes, starts)
        return inside + 1

    # --- repetition ---

    @cached_property
    def _values(self) -> np.ndarray:
        """(N,) what hashes of lines and paragraphs are made of: every code point but the newline counts."""
        block = self.block
        values = block.tables.raw.take(block.code_points, mode="clip")
        spaces = np.flatnonzero((block.kinds == SPACE) & (block.code_points != NEWLINE))
        values[spaces] = fmix64(block.code_points[spaces].astype(np.uint64) + np.uint64(0x2545F4914F6CDD1D))
        return values

    @cached_property
    def line_hashes(self) -> np.ndarray:
        """(lines that are not blank,) uint64, indentation included."""
        return hash_spans(self._values, self._raw_lines[0])

    @cached_property
    def _dup_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """(D,) lines that occurred before in their document, and their characters."""
        return self._duplicates(self.line_hashes, self.line_spans[2], self._raw_lines[1])

    def _duplicates(self, hashes: np.ndarray, docs: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, first = group_equal(by_doc(hashes, docs))
        again = order[~first]
        return self.block.per_doc(docs[again]).astype(float), self.block.per_doc(docs[again], lengths[again])

    @cached_property
    def dup_line_frac(self) -> np.ndarray:
        return self._dup_lines[0] / np.maximum(self.block.per_doc(self.line_spans[2]), 1)

    @cached_property
    def dup_line_char_frac(self) -> np.ndarray:
        return self._dup_lines[1] / np.maximum(self.num_chars, 1)

    @cached_property
    def dup_line_chars(self) -> np.ndarray:
        """Characters of repeated lines by characters without newlines (FineWeb's denominator)."""
        return self._dup_lines[1] / np.maximum(self.num_chars - (self.num_lines - 1), 1)

    @cached_property
    def _dup_paragraphs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        docs, (starts, lengths) = self.line_spans[2], self._raw_lines
        if not len(docs):
            zero = np.zeros(self.block.num_docs)
            return zero, zero, zero
        opens = np.empty(len(docs), bool)
        opens[0], opens[1:] = True, (np.diff(self.solid_lines) > 1) | (np.diff(docs) > 0)
        at = np.flatnonzero(opens)
        ends = (starts + lengths)[np.append(at[1:] - 1, len(docs) - 1)]
        again, chars = self._duplicates(hash_spans(self._values, starts[at]), docs[at], ends - starts[at])
        return self.block.per_doc(docs[at]).astype(float), again, chars

    @cached_property
    def dup_para_frac(self) -> np.ndarray:
        return self._dup_paragraphs[1] / np.maximum(self._dup_paragraphs[0], 1)

    @cached_property
    def dup_para_char_frac(self) -> np.ndarray:
        return self._dup_paragraphs[2] / np.maximum(self.num_chars, 1)

    def top_gram(self, n: int) -> np.ndarray:
        """Characters of the most frequent n-gram, each occurrence counted, by characters; 0 if none occurs twice."""
        return self._grams[0][n]

    def dup_gram(self, n: int) -> np.ndarray:
        """Characters of repeated n-grams by characters. After a repeat the next n - 1 positions are passed over."""
        return self._grams[1][n]

    @cached_property
    def _grams(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        top = {n: np.zeros(self.block.num_docs) for n in (2, 3, 4)}
        dup = {n: np.zeros(self.block.num_docs) for n in range(5, 11)}
        unspaced = self.unspaced[self.block.token_docs]
        for chosen, scale in ((~unspaced, 1.0), (unspaced, CHARS_PER_WORD)):
            if chosen.any():
                self._measure_grams(chosen, scale, top, dup)
        whole = np.maximum(self.num_chars, 1)
        return {n: v / whole for n, v in top.items()}, {n: v / whole for n, v in dup.items()}

    def _measure_grams(self, chosen: np.ndarray, scale: float, top: dict[int, np.ndarray], dup: dict[int, np.ndarray]) -> None:
        """Add the characters of repeated n-grams of the chosen tokens to `top` and `dup`.

        An n-gram that occurs twice holds an (n-1)-gram that does: each n looks only at the positions that n-1 left over,
        which after n = 4 are few in honest text.
        """
        every = chosen.all()
        hashes, docs, lengths = (a if every else a[chosen] for a in (self.block.raw_token_hashes, self.block.token_docs, self.block.token_lengths))
        before = np.concatenate(([0], np.cumsum(lengths)))  # characters before token i
        rolling = Rolling(hashes)
        alive = np.arange(len(hashes))
        for words in (*top, *dup):
            n = max(int(words * scale + 0.5), 2)
            grams = rolling.advance(n)
            alive = alive[alive < len(grams)]
            alive = alive[docs[alive] == docs[alive + n - 1]]
            order, first = group_equal(by_doc(grams[alive], docs[alive]))
            again = ~first
            again[:-1] |= ~first[1:]  # the first of a group of two or more counts as well
            order, first = order[again], first[again]
            places = alive[order]  # grouped by n-gram, in order of position inside a group
            if not len(places):
                return
            if words in top:
                _add_top(top[words], places, first, docs, before, n, words - 1)
            else:
                _add_duplicates(dup[words], places, first, docs, before, n)
            alive = np.sort(places)


def _add_top(out: np.ndarray, places: np.ndarray, first: np.ndarray, docs: np.ndarray, before: np.ndarray, n: int, spaces: int) -> None:
    """Of each document take its most frequent n-gram (the earliest of equals); its length, with the spaces that would join it, times its count."""
    opens = np.flatnonzero(first)
    counts = np.diff(np.append(opens, len(places)))
    places = places[opens]
    order = np.lexsort((places, -counts, docs[places]))
    owner = docs[places[order]]
    best = order[np.append(True, owner[1:] != owner[:-1])]
    at = places[best]
    out[docs[at]] += (before[at + n] - before[at] + spaces) * counts[best]


def _add_duplicates(out: np.ndarray, places: np.ndarray, first: np.ndarray, docs: np.ndarray, before: np.ndarray, n: int) -> None:
    """Count characters as datatrove's walk does: an n-gram met before counts, and the walk jumps over it. `places` are grouped by n-gram.

    The walk depends on itself, so it is a loop; but only over n-grams that do occur twice.
    """
    by_place = np.argsort(places)
    group = np.cumsum(first)[by_place]
    counted = np.array(_walk(places[by_place].tolist(), group.tolist(), n), np.int64)
    out += np.bincount(docs[counted], before[counted + n] - before[counted], minlength=len(out))


def _walk(places: list[int], groups: list[int], n: int) -> list[int]:
    """Return the places that count."""
    seen: set[int] = set()
    counted, beyond = [], -1
    for place, group in zip(places, groups, strict=True):
        if place < beyond:
            continue
        if group in seen:
            counted.append(place)
            beyond = place + n
        else:
            seen.add(group)
    return counted
