"""The filters: frozen dataclasses of thresholds, called with the measurements of a block of documents.

    checks = GopherQuality(min_words=30)(stats)      # one Check per threshold, vectorised over the block

`llmpipe list filters` prints FILTERS; a config names them under `filters`. Code from elsewhere is named as
"package.module:Name" and has the same form. A threshold of None turns its rule off.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from llmpipe.clean.c4 import C4
from llmpipe.clean.line_corrections import LineCorrections
from llmpipe.clean.statistics import Stats

ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
Checks = tuple[tuple[str, str, str], ...]
"""Of each rule: the field that holds its threshold, the statistic, the comparison under which a document is dropped."""
Measures = dict[str, Callable[[Any, Stats], np.ndarray]]
"""Statistics that depend on a filter's other fields."""
_REPETITION = ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac", *(f"top_{n}_gram" for n in (2, 3, 4)), *(f"dup_{n}_gram" for n in range(5, 11)))
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
    """Yield the check of the threshold `name` of the filter `owner`; nothing when it is off (None or False).

    `failing` is the comparison under which a document is dropped: `<`, `<=`, `>`, `>=`.
    """
    threshold = getattr(owner, name)
    if threshold is not None and threshold is not False:
        limit = 0.0 if threshold is True else float(threshold)  # a ban: what must not occur
        yield Check(f"{filter_name(owner)}.{name}", statistic, values, limit, FAILING[failing](values, limit))


FAILING = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def evaluate(owner: Any, stats: Any) -> Iterator[Check]:
    """Yield the checks of a filter that lists them in CHECKS. `stats` measures a block, or holds what was measured before."""
    for name, statistic, failing in owner.CHECKS:
        if getattr(owner, name) not in (None, False):
            yield from check(owner, name, statistic, stats.get(statistic, owner), failing)


def filter_name(owner: Any) -> str:
    """Return the name that a filter goes by in configs and in `dropped/`."""
    kind = type(owner)
    return next((name for name, known in FILTERS.items() if known is kind), f"{kind.__module__}:{kind.__qualname__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Length in characters."""

    CHECKS: ClassVar[Checks] = (("min_chars", "num_chars", "<"), ("max_chars", "num_chars", ">"))
    min_chars: int | None = None
    max_chars: int | None = None

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Characters lost to a wrong decoding (U+FFFD)."""

    CHECKS: ClassVar[Checks] = (("max_replacement_ratio", "replacement_ratio", ">"),)
    max_replacement_ratio: float | None = 0.005

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherRepetition:
    """Repeated lines, paragraphs and n-grams (Rae et al. 2021, table A1)."""

    CHECKS: ClassVar[Checks] = tuple((name, name, ">") for name in _REPETITION)
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
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherQuality:
    """Length, word length, symbols, bullets, letters, stop words (Rae et al. 2021, section A1.1)."""

    CHECKS: ClassVar[Checks] = (
        ("min_words", "num_words", "<"), ("max_words", "num_words", ">"),
        ("min_mean_word_length", "mean_word_length", "<"), ("max_mean_word_length", "mean_word_length", ">"),
        ("max_hash_ratio", "hash_ratio", ">"), ("max_ellipsis_ratio", "ellipsis_ratio", ">"),
        ("max_bullet_lines", "bullet_lines", ">"), ("max_ellipsis_lines", "ellipsis_lines", ">"),
        ("min_alpha_words", "alpha_words", "<"), ("min_stop_words", "stop_words", "<"),
    )  # fmt: skip
    MEASURES: ClassVar[Measures] = {
        "bullet_lines": lambda owner, stats: stats.bullet_lines(owner.bullets),
        "stop_words": lambda owner, stats: stats.stop_words(owner.stop_words, distinct=owner.distinct_stop_words),
    }
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
    """How many stop words there must be."""
    stop_words: tuple[str, ...] = ENGLISH_STOP_WORDS
    distinct_stop_words: bool = True
    """Count different ones; false: every occurrence (DCLM)."""
    bullets: str = "•-"
    """What opens an item of a list; DCLM has `●•*-`."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineWebQuality:
    """Lines without final punctuation, short lines, repeated lines, lists (Penedo et al. 2024, section 3.5)."""

    CHECKS: ClassVar[Checks] = (
        ("min_punctuated_lines", "punctuated_lines", "<"), ("max_short_lines", "short_lines", ">"),
        ("max_dup_line_chars", "dup_line_chars", ">"), ("max_newline_ratio", "newline_ratio", ">"),
    )  # fmt: skip
    MEASURES: ClassVar[Measures] = {"short_lines": lambda owner, stats: stats.short_lines(owner.short_line_chars)}
    min_punctuated_lines: float | None = 0.12
    max_short_lines: float | None = 0.67
    short_line_chars: int = 30
    max_dup_line_chars: float | None = 0.01
    max_newline_ratio: float | None = 0.3
    """Newlines by tokens."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class C4Filter(C4):
    """Lines without a sentence, with JavaScript or policies; pages with braces or lorem ipsum (Raffel et al. 2020, section 2.2)."""

    CHECKS: ClassVar[Checks] = (("min_sentences", "c4_sentences", "<"), ("lorem_ipsum", "c4_lorem_ipsum", ">"), ("curly_bracket", "c4_curly_bracket", ">"))
    MEASURES: ClassVar[Measures] = {
        "c4_sentences": lambda owner, stats: owner.sentences(stats),
        "c4_lorem_ipsum": lambda owner, stats: owner.banned(stats, "lorem_ipsum"),
        "c4_curly_bracket": lambda owner, stats: owner.banned(stats, "curly_bracket"),
    }

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class C4Paragraphs:
    """Pages without three long lines (mC4, Xue et al. 2021)."""

    CHECKS: ClassVar[Checks] = (("min_chars", "c4_long_line", "<"),)
    MEASURES: ClassVar[Measures] = {"c4_long_line": lambda owner, stats: stats.long_line(owner.paragraphs)}
    paragraphs: int = 3
    min_chars: int | None = 200
    """The third longest line must have so many characters."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFilter(LineCorrections):
    """Lines of interfaces: capitals, counters, single words, "Read more..." (Penedo et al. 2023, section G.2; DCLM)."""

    CHECKS: ClassVar[Checks] = (("max_removed_words", "removed_words", ">"),)
    MEASURES: ClassVar[Measures] = {"removed_words": lambda owner, stats: owner.removed_words(stats)}

    def __call__(self, stats: Stats) -> Iterator[Check]:
        return evaluate(self, stats)


FILTERS: dict[str, type] = {
    "length": Length,
    "encoding": Encoding,
    "gopher_repetition": GopherRepetition,
    "gopher_quality": GopherQuality,
    "c4": C4Filter,
    "c4_paragraphs": C4Paragraphs,
    "fineweb_quality": FineWebQuality,
    "lines": LineFilter,
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
