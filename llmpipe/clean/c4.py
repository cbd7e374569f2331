"""C4's rules on lines and pages, in English and with what serves for them in Chinese.

    C4().rewrite(stats)   ->   {number of the document: its text without the dropped lines}

A line is dropped when it has fewer than 3 words, does not end in terminal punctuation, holds a word of more than 1,000
characters, or speaks of JavaScript, cookies or terms of use. Citation marks like [3] or [edit] go. A page goes when a line
that is left holds a brace or lorem ipsum, or when fewer than 5 sentences are left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llmpipe.clean.statistics import Stats
from llmpipe.text.characters import C4_TERMINAL

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class C4:
    """The parameters of C4 and the line work; see `C4Filter` for the checks."""

    min_words_per_line: float | None = 3
    max_word_chars: int | None = 1000
    terminal_punctuation: bool = True
    """Drop lines that do not end in `. ? ! " '` or 。！？；…”’」』）, or that end in `...`; FineWeb leaves this rule out."""
    javascript: bool = True
    policies: bool = True
    citations: bool = True
    """Remove [1], [edit], [citation needed]."""
    lorem_ipsum: bool = True
    """Drop pages that hold it."""
    curly_bracket: bool = True
    """Drop pages with a `{`, which are mostly program text."""
    min_sentences: float | None = 5
    """In the lines that are left."""

    def sentences(self, stats: Stats) -> np.ndarray:
        """(D,) sentences in the lines that `rewrite` keeps."""
        kept, _ = self._lines(stats)
        return stats.block.per_doc(stats.line_spans[2], (stats.line_sentences * kept).astype(float))

    def banned(self, stats: Stats, name: str) -> np.ndarray:
        """(D,) how often `lorem_ipsum` or `curly_bracket` occurs in lines that were not dropped before it is looked for."""
        return self._lines(stats)[1][name]

    def rewrite(self, stats: Stats) -> dict[int, str]:
        """Return the new texts of the documents that change, by number."""
        kept, _ = self._lines(stats)
        docs = stats.line_spans[2]
        dropped = stats.block.per_doc(docs, (~kept).astype(float))
        blank = stats.block.per_doc(stats.block.line_docs, stats.block.line_blank.astype(float))
        starts, ends, _ = stats.line_spans
        origin = stats.block.doc_ends - stats.block.num_chars - 1
        bounds = np.searchsorted(docs, np.arange(stats.block.num_docs + 1))
        out = {}
        for i, text in enumerate(stats.block.texts):
            if dropped[i] or blank[i] or "[" in text:
                own = slice(bounds[i], bounds[i + 1])
                spans = zip((starts[own] - origin[i]).tolist(), (ends[own] - origin[i]).tolist(), kept[own].tolist(), strict=True)
                new = "\n".join([text[start:end] for start, end, keep in spans if keep])
                if self.citations:
                    new = _CITATION.sub("", new)
                if new != text:
                    out[i] = new
        return out

    def _lines(self, stats: Stats) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(lines that are not blank,) bool: kept; and the bans by document. In the order of C4's own code, since a line that is gone bans nothing."""
        cached = stats.cache.get(self)
        if cached is None:
            cached = stats.cache[self] = self._look_at_lines(stats)
        return cached

    def _look_at_lines(self, stats: Stats) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        block = stats.block
        starts, ends, docs = stats.line_spans
        kept = np.ones(len(starts), bool)
        none = np.zeros(block.num_docs)
        if not len(starts):
            return kept, {"lorem_ipsum": none, "curly_bracket": none}

        def lines_of(positions: np.ndarray) -> np.ndarray:
            return np.searchsorted(starts, positions, side="right") - 1

        def bans(phrase: str) -> np.ndarray:
            lines = lines_of(_find(stats, (phrase,)))
            return block.per_doc(docs[lines[kept[lines]]]).astype(float)

        if self.max_word_chars is not None:
            words = stats.space_words
            last = np.append(words[1:], len(block.code_points))
            long = words[last - words > self.max_word_chars]  # the white space after it counts here; looked at again below
            for at in long.tolist():
                line = int(lines_of(np.array([at]))[0])
                if stats.unspaced[docs[line]]:
                    inside = slice(*np.searchsorted(block.token_starts, (at, ends[line])))
                    if block.token_lengths[inside].max(initial=0) > self.max_word_chars:
                        kept[line] = False
                elif len(block.text_of(at, int(ends[line])).split(None, 1)[0]) > self.max_word_chars:
                    kept[line] = False
        if self.terminal_punctuation:
            last = block.code_points[ends - 1].copy()
            if self.citations:  # what stands before the marks counts
                for k in np.flatnonzero(last == ord("]")).tolist():
                    line = _CITATION.sub("", block.text_of(int(starts[k]), int(ends[k]))).rstrip()
                    last[k] = ord(line[-1]) if line else 0
            kept &= ((block.tables.flags.take(last, mode="clip") & C4_TERMINAL) != 0) & ~stats.lines_ending_in_dots
        if self.min_words_per_line is not None:
            kept &= stats.line_words >= self.min_words_per_line
        lorem = bans("lorem ipsum")
        if self.javascript:
            kept[lines_of(_find(stats, ("javascript",)))] = False
        curly = bans("{")
        if self.policies:
            kept[lines_of(_find(stats, POLICIES))] = False
        return kept, {"lorem_ipsum": lorem, "curly_bracket": curly}


def _find(stats: Stats, phrases: tuple[str, ...]) -> np.ndarray:
    """Return the positions in the block of every occurrence of the phrases, in any case."""
    lower = stats.lower
    found = []
    for phrase in phrases:
        at = lower.find(phrase)
        while at >= 0:
            found.append(at)
            at = lower.find(phrase, at + len(phrase))
    return np.array(sorted(found), np.int64)
