"""The filters: frozen dataclasses of thresholds, called with the measurements of a block of documents.

    checks = GopherQuality(min_words=30)(stats)      # one Check per threshold, vectorised over the block

`llmpipe list filters` prints FILTERS; a config names them under `filters`. Code from elsewhere is named as
"package.module:Name" and has the same form. A threshold of None turns its rule off.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmpipe.clean.c4 import C4
from llmpipe.clean.statistics import Stats

ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
CHINESE_STOP_WORDS = tuple("的年在月是和日了於·為有被人中为他與後也而由")


@dataclass(frozen=True, slots=True)
class Check:
    """One rule over D documents."""

    rule: str
    """Filter and threshold: `gopher_quality.min_words`."""
    statistic: str
    """What was measured: the column of the values table."""
    values: np.ndarray
    """(D,) float64."""
    threshold: float
    failed: np.ndarray
    """(D,) bool."""


def check(owner: Any, name: str, statistic: str, values: np.ndarray, failing: str) -> Iterator[Check]:
    """Yield the check of the threshold `name` of the filter `owner`; nothing when it is None.

    `failing` is the comparison under which a document is dropped: `<`, `<=`, `>`, `>=`.
    """
    threshold = getattr(owner, name)
    if threshold is not None:
        compare = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}[failing]
        yield Check(f"{filter_name(owner)}.{name}", statistic, values, float(threshold), compare(values, threshold))


def filter_name(owner: Any) -> str:
    """Return the name that a filter goes by in configs and in `dropped/`."""
    kind = type(owner)
    return next((name for name, known in FILTERS.items() if known is kind), f"{kind.__module__}:{kind.__qualname__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Length in characters."""

    min_chars: int | None = None
    max_chars: int | None = None

    def __call__(self, stats: Stats) -> Iterator[Check]:
        yield from check(self, "min_chars", "num_chars", stats.num_chars, "<")
        yield from check(self, "max_chars", "num_chars", stats.num_chars, ">")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Characters lost to a wrong decoding (U+FFFD)."""

    max_replacement_ratio: float | None = 0.005

    def __call__(self, stats: Stats) -> Iterator[Check]:
        yield from check(self, "max_replacement_ratio", "replacement_ratio", stats.replacement_ratio, ">")


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherRepetition:
    """Repeated lines, paragraphs and n-grams (Rae et al. 2021, table A1)."""

    dup_line_frac: float | None = 0.30
    dup_para_frac: float | None = 0.30
    dup_line_char_frac: float | None = 0.20
    dup_para_char_frac: float | None = 0.20
    top_2_gram: float | None = 0.20
    """Share of characters in the most frequent 2-gram; an n-gram found once doesn't count."""
    top_3_gram: float | None = 0.18
    top_4_gram: float | None = 0.16
    dup_5_gram: float | None = 0.15
    """Share of characters in 5-grams that occurred before."""
    dup_6_gram: float | None = 0.14
    dup_7_gram: float | None = 0.13
    dup_8_gram: float | None = 0.12
    dup_9_gram: float | None = 0.11
    dup_10_gram: float | None = 0.10

    def __call__(self, stats: Stats) -> Iterator[Check]:
        for name in ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac"):
            yield from check(self, name, name, getattr(stats, name), ">")
        for n in (2, 3, 4):
            yield from check(self, f"top_{n}_gram", f"top_{n}_gram", stats.top_gram(n), ">")
        for n in range(5, 11):
            yield from check(self, f"dup_{n}_gram", f"dup_{n}_gram", stats.dup_gram(n), ">")


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherQuality:
    """Length, word length, symbols, bullets, letters, stop words (Rae et al. 2021, section A1.1)."""

    min_words: float | None = 50
    max_words: float | None = 100_000
    min_mean_word_length: float | None = 3
    max_mean_word_length: float | None = 10
    max_hash_ratio: float | None = 0.1
    """`#` by tokens (words and punctuation)."""
    max_ellipsis_ratio: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alpha_words: float | None = 0.8
    """Share of tokens that hold a letter."""
    min_stop_words: float | None = 2
    """How many different stop words there must be."""
    stop_words: tuple[str, ...] = ENGLISH_STOP_WORDS

    def __call__(self, stats: Stats) -> Iterator[Check]:
        yield from check(self, "min_words", "num_words", stats.num_words, "<")
        yield from check(self, "max_words", "num_words", stats.num_words, ">")
        yield from check(self, "min_mean_word_length", "mean_word_length", stats.mean_word_length, "<")
        yield from check(self, "max_mean_word_length", "mean_word_length", stats.mean_word_length, ">")
        yield from check(self, "max_hash_ratio", "hash_ratio", stats.hash_ratio, ">")
        yield from check(self, "max_ellipsis_ratio", "ellipsis_ratio", stats.ellipsis_ratio, ">")
        yield from check(self, "max_bullet_lines", "bullet_lines", stats.bullet_lines, ">")
        yield from check(self, "max_ellipsis_lines", "ellipsis_lines", stats.ellipsis_lines, ">")
        yield from check(self, "min_alpha_words", "alpha_words", stats.alpha_words, "<")
        if self.min_stop_words is not None:
            yield from check(self, "min_stop_words", "stop_words", stats.stop_words(self.stop_words), "<")


@dataclass(frozen=True, slots=True, kw_only=True)
class FineWebQuality:
    """Lines without final punctuation, short lines, repeated lines, lists (Penedo et al. 2024, section 3.5)."""

    min_punctuated_lines: float | None = 0.12
    max_short_lines: float | None = 0.67
    short_line_chars: int = 30
    max_dup_line_chars: float | None = 0.01
    max_newline_ratio: float | None = 0.3
    """Newlines by tokens."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        yield from check(self, "min_punctuated_lines", "punctuated_lines", stats.punctuated_lines, "<=")
        yield from check(self, "max_short_lines", "short_lines", stats.short_lines(self.short_line_chars), ">=")
        yield from check(self, "max_dup_line_chars", "dup_line_chars", stats.dup_line_chars_of_lines, ">=")
        yield from check(self, "max_newline_ratio", "newline_ratio", stats.newline_ratio, ">")


@dataclass(frozen=True, slots=True, kw_only=True)
class C4Filter(C4):
    """Lines without a sentence, with JavaScript or policies; pages with braces or lorem ipsum (Raffel et al. 2020, section 2.2)."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        yield from check(self, "min_sentences", "c4_sentences", self.sentences(stats), "<")
        pages = self.banned_pages(stats)
        for name in ("lorem_ipsum", "curly_bracket"):
            if getattr(self, name):
                yield Check(f"{filter_name(self)}.{name}", f"c4_{name}", pages[name], 0.0, pages[name] > 0)


FILTERS: dict[str, type] = {
    "length": Length,
    "encoding": Encoding,
    "gopher_repetition": GopherRepetition,
    "gopher_quality": GopherQuality,
    "c4": C4Filter,
    "fineweb_quality": FineWebQuality,
}
"""Every filter of llmpipe, by the name that configs use. A filter with `rewrite(stats)` also changes text: it returns
`{document: new text}`, and the filters after it measure the new text."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A filter and the languages it applies to."""

    filter: Any
    languages: tuple[str, ...] = ()
    """None: all but `excluded`."""
    excluded: tuple[str, ...] = ()

    def applies_to(self, language: str) -> bool:
        return language in self.languages if self.languages else language not in self.excluded
