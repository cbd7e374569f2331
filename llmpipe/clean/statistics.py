"""Measure a block of documents: the numbers that filters compare with their thresholds.

    stats = Stats(Block(texts), languages)
    stats.num_words, stats.dup_line_frac, stats.top_gram(2), …      # (D,) float64 each, computed when first asked for

"Words" of scripts without spaces are estimated as characters / 1.6 (Han characters per word), so that thresholds published
for segmented Chinese hold without a segmenter; n-grams of words become n-grams of 1.6 n characters there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from llmpipe.clean.language import CHARS_PER_WORD, profile
from llmpipe.text.block import Block, Rolling, by_doc, group_equal
from llmpipe.text.characters import ALPHA, BULLET, ELLIPSIS, SENTENCE, SINGLE, TERMINAL, WORD


class Stats:
    """Measurements of D documents. Shapes as in Block."""

    def __init__(self, block: Block, languages: Sequence[str]) -> None:
        self.block, self.languages = block, list(languages)
        self.profiles = [profile(code) for code in languages]
        self.unspaced = np.array([p in ("zh", "characters") for p in self.profiles], bool)  # (D,)

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
        lower = joined.lower()
        return lower if len(lower) == len(joined) else "".join(c if len(c.lower()) != 1 else c.lower() for c in joined)  # İ becomes two

    @cached_property
    def lines_ending_in_dots(self) -> np.ndarray:
        """(lines that are not blank,) bool: they end in `...`."""
        return self._ends_in_ellipsis(dots_only=True)

    @cached_property
    def _is_word(self) -> np.ndarray:
        kinds = self.block.token_kinds
        return (kinds == WORD) | (kinds == SINGLE)

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
        dots = self._dot_runs
        three = np.bincount(self.block.token_docs[dots], self.block.token_lengths[dots] // 3, minlength=self.block.num_docs)
        return (three + self._code_points_per_doc(self.block.code_points == ord("…"))) / np.maximum(self.num_tokens, 1e-9)

    @cached_property
    def _dot_runs(self) -> np.ndarray:
        """Numbers of the tokens that are three dots or more."""
        first = self.block.code_points[self.block.token_starts]
        return np.flatnonzero((first == ord(".")) & (self.block.token_lengths >= 3))

    def stop_words(self, words: Sequence[str]) -> np.ndarray:
        """How many different ones of `words` a document holds, as they are spelled."""
        hashes = Block(words).raw_token_hashes
        if len(hashes) != len(words):
            raise ValueError(f"stop words must be single tokens; one of {', '.join(words)} is not")
        found = np.zeros(self.block.num_docs)
        for h in hashes:
            found += self.block.per_doc(self.block.token_docs[self.block.raw_token_hashes == h]) > 0
        return found

    @cached_property
    def replacement_ratio(self) -> np.ndarray:
        """U+FFFD, left by a wrong decoding, by characters."""
        return self._code_points_per_doc(self.block.code_points == 0xFFFD) / np.maximum(self.num_chars, 1)

    def _code_points_per_doc(self, mask: np.ndarray) -> np.ndarray:
        return self.block.per_doc(np.searchsorted(self.block.doc_ends, np.flatnonzero(mask), side="right")).astype(float)

    # --- lines ---

    @cached_property
    def _solid(self) -> np.ndarray:
        """Numbers of the lines that are not blank."""
        return np.flatnonzero(~self.block.line_blank)

    @cached_property
    def _line_spans(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts, ends = self.block.line_spans
        return starts[self._solid], ends[self._solid], self.block.line_docs[self._solid]

    def _share_of_lines(self, mask: np.ndarray) -> np.ndarray:
        docs = self._line_spans[2]
        return self.block.per_doc(docs, mask.astype(float)) / np.maximum(self.block.per_doc(docs), 1)

    @cached_property
    def bullet_lines(self) -> np.ndarray:
        return self._share_of_lines((self._flags[self._line_spans[0]] & BULLET) != 0)

    @cached_property
    def ellipsis_lines(self) -> np.ndarray:
        return self._share_of_lines(self._ends_in_ellipsis(dots_only=False))

    def _ends_in_ellipsis(self, *, dots_only: bool) -> np.ndarray:
        """(lines that are not blank,) bool."""
        starts, ends, _ = self._line_spans
        cp, dot = self.block.code_points, ord(".")
        dots = (ends - starts >= 3) & (cp[ends - 1] == dot) & (cp[ends - 2] == dot) & (cp[ends - 3] == dot)
        return dots if dots_only else dots | ((self._flags[ends - 1] & ELLIPSIS) != 0)

    @cached_property
    def punctuated_lines(self) -> np.ndarray:
        """Share of lines that end in terminal punctuation."""
        return self._share_of_lines((self._flags[self._line_spans[1] - 1] & TERMINAL) != 0)

    def short_lines(self, max_chars: int) -> np.ndarray:
        starts, ends, _ = self._line_spans
        return self._share_of_lines(ends - starts <= max_chars)

    @cached_property
    def newline_ratio(self) -> np.ndarray:
        """Newlines by tokens."""
        newlines = np.bincount(self.block.line_docs, minlength=self.block.num_docs) - 1.0
        return newlines / np.maximum(self.num_tokens, 1e-9)

    @cached_property
    def num_sentences(self) -> np.ndarray:
        return self.block.per_doc(self._line_spans[2], self.line_sentences.astype(float))

    @cached_property
    def line_sentences(self) -> np.ndarray:
        """(lines that are not blank,) sentences: a terminator before white space or the line's end closes one, and so does the line's end."""
        flags, block = self._flags, self.block
        at = np.flatnonzero(flags & SENTENCE)
        after = np.minimum(at + 1, len(flags) - 1)
        quoted = (flags[after] & TERMINAL != 0) & (flags[after] & SENTENCE == 0)  # a closing quote or bracket
        beyond = np.where(quoted, np.minimum(at + 2, len(flags) - 1), after)
        wide = block.code_points[at] >= 0x2000  # 。！？ need no space after them
        closes = at[((block.kinds[beyond] == 0) | wide) & (flags[after] & SENTENCE == 0)]
        starts, ends, _ = self._line_spans
        inside = np.searchsorted(closes, ends - 2) - np.searchsorted(closes, starts)
        return inside + 1

    # --- repetition ---

    @cached_property
    def _line_hashes(self) -> np.ndarray:
        return self.block.span_hashes(self.block.line_first_tokens[:-1][self._solid])

    @cached_property
    def _dup_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """(D,) lines that occurred before in their document, and their characters."""
        starts, ends, docs = self._line_spans
        return self._duplicates(self._line_hashes, docs, ends - starts)

    def _duplicates(self, hashes: np.ndarray, docs: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order, first = group_equal(by_doc(hashes, docs))
        again = order[~first]
        return self.block.per_doc(docs[again]).astype(float), self.block.per_doc(docs[again], lengths[again])

    @cached_property
    def dup_line_frac(self) -> np.ndarray:
        return self._dup_lines[0] / np.maximum(self.block.per_doc(self._line_spans[2]), 1)

    @cached_property
    def dup_line_char_frac(self) -> np.ndarray:
        return self._dup_lines[1] / np.maximum(self.num_chars, 1)

    @cached_property
    def dup_line_chars_of_lines(self) -> np.ndarray:
        """Characters of repeated lines by characters without newlines (FineWeb's denominator)."""
        newlines = np.bincount(self.block.line_docs, minlength=self.block.num_docs) - 1
        return self._dup_lines[1] / np.maximum(self.num_chars - newlines, 1)

    @cached_property
    def _dup_paragraphs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        starts, ends, docs = self._line_spans
        if not len(docs):
            zero = np.zeros(self.block.num_docs)
            return zero, zero, zero
        opens = np.empty(len(docs), bool)
        opens[0], opens[1:] = True, (np.diff(self._solid) > 1) | (np.diff(docs) > 0)
        at = np.flatnonzero(opens)
        hashes = self.block.span_hashes(self.block.line_first_tokens[:-1][self._solid[at]])
        lengths = ends[np.append(at[1:] - 1, len(ends) - 1)] - starts[at]
        again, chars = self._duplicates(hashes, docs[at], lengths)
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
        gap = 1 if scale == 1.0 else 0  # of the spaces between words
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
                _add_top(top[words], places, first, docs, before, n, gap)
            else:
                group = np.cumsum(first)
                by_place = np.argsort(places)
                _add_duplicates(dup[words], places[by_place], group[by_place], docs, before, n)
            alive = np.sort(places)


def _add_top(out: np.ndarray, places: np.ndarray, first: np.ndarray, docs: np.ndarray, before: np.ndarray, n: int, gap: int) -> None:
    """Of each document take its most frequent n-gram (the earliest of equals); its length with spaces times its count."""
    opens = np.flatnonzero(first)
    counts = np.diff(np.append(opens, len(places)))
    places = places[opens]
    order = np.lexsort((places, -counts, docs[places]))
    owner = docs[places[order]]
    best = order[np.append(True, owner[1:] != owner[:-1])]
    at = places[best]
    out[docs[at]] += (before[at + n] - before[at] + gap * (n - 1)) * counts[best]


def _add_duplicates(out: np.ndarray, places: np.ndarray, group: np.ndarray, docs: np.ndarray, before: np.ndarray, n: int) -> None:
    """Walk over the positions of repeated n-grams as datatrove does: one seen before counts, and is jumped over.

    The walk depends on itself, so it is a loop; but only over n-grams that do occur twice.
    """
    chars = (before[places + n] - before[places]).tolist()
    owners = docs[places].tolist()
    seen: set[int] = set()
    beyond = -1
    for place, number, length, doc in zip(places.tolist(), group.tolist(), chars, owners, strict=True):
        if place < beyond:
            continue
        if number in seen:
            out[doc] += length
            beyond = place + n
        else:
            seen.add(number)


