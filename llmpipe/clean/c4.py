"""C4's rules on lines and pages, in English and with what serves for them in Chinese.

    C4().rewrite(stats)   ->   {number of the document: its text without the dropped lines}

A line is dropped when it has fewer than 3 words, does not end in terminal punctuation, holds a word of more than 1,000
characters, or speaks of JavaScript, cookies or terms of use. Citation marks like [3] or [edit] go.
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
        docs = stats.block.line_docs[~stats.block.line_blank]
        return stats.block.per_doc(docs, (stats.line_sentences * self._kept_lines(stats)).astype(float))

    def banned_pages(self, stats: Stats) -> dict[str, np.ndarray]:
        """(D,) how often each ban occurs in a document."""
        return {"lorem_ipsum": _count(stats, ("lorem ipsum",)), "curly_bracket": _count(stats, ("{",))}

    def rewrite(self, stats: Stats) -> dict[int, str]:
        """Return the new texts of the documents that change, by number."""
        kept = self._kept_lines(stats)
        docs = stats.block.line_docs[~stats.block.line_blank]
        dropped = stats.block.per_doc(docs, (~kept).astype(float))
        blank = stats.block.per_doc(stats.block.line_docs, stats.block.line_blank.astype(float))
        starts, ends = (a[~stats.block.line_blank] for a in stats.block.line_spans)
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

    def _kept_lines(self, stats: Stats) -> np.ndarray:
        """(lines that are not blank,) bool."""
        block = stats.block
        solid = ~block.line_blank
        starts, ends = (a[solid] for a in block.line_spans)
        kept = np.ones(len(starts), bool)
        if not len(starts):
            return kept
        if self.min_words_per_line is not None:
            words = np.add.reduceat(stats.word_weights, block.line_first_tokens[:-1][solid])
            kept &= words >= self.min_words_per_line
        if self.max_word_chars is not None:
            long = block.token_starts[block.token_lengths > self.max_word_chars]
            kept[np.searchsorted(starts, long, side="right") - 1] = False
        if self.terminal_punctuation:
            last = block.code_points[ends - 1].copy()
            if self.citations:  # what stands before the marks counts
                for k in np.flatnonzero(last == ord("]")).tolist():
                    line = _CITATION.sub("", "".join(map(chr, block.code_points[starts[k] : ends[k]].tolist()))).rstrip()
                    last[k] = ord(line[-1]) if line else 0
            kept &= ((block.tables.flags.take(last, mode="clip") & C4_TERMINAL) != 0) & ~stats.lines_ending_in_dots
        phrases = (("javascript",) if self.javascript else ()) + (POLICIES if self.policies else ())
        if phrases:
            kept[np.searchsorted(starts, _find(stats, phrases), side="right") - 1] = False
        return kept


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


def _count(stats: Stats, phrases: tuple[str, ...]) -> np.ndarray:
    docs = np.searchsorted(stats.block.doc_ends, _find(stats, phrases), side="right")
    return stats.block.per_doc(docs).astype(float)
