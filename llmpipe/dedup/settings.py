"""The config of dedup: `llmpipe config init dedup` prints it with every key explained.

Nothing here is computed; `stage.py` says in which order the rules run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmpipe.config import cosmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class MinHashConfig:
    threshold: float = 0.75
    """Drop a document that shares at least this part of its shingles (Jaccard, counted exactly) with one that stays."""
    num_bands: int = 14
    num_rows: int = 8
    """A signature has num_bands x num_rows minima, cut into bands of num_rows."""
    probe_rows: int = 4
    """Two documents are compared when the first probe_rows minima of any band agree: with 14 bands and 4 rows at similarity
    0.7 in 98 %, at 0.8 in 99.94 % of cases. With all 8, as other tools do: in 56 % and 92 %. Every pair is counted
    exactly before anything is dropped, so fewer rows cost time and no precision."""
    ngram: int = 5
    """Words in a shingle."""
    char_ngram: int = 8
    """Characters in a shingle where the script puts no spaces between words (Chinese, Japanese, Thai)."""
    seed: int = 1

    def __post_init__(self) -> None:
        _check_share(self, "threshold", above_zero=True)
        _check_counts(self, "num_bands", "num_rows", "probe_rows", "ngram", "char_ngram")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: {self.seed} is not between 0 and 2^32 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesConfig:
    unit: Literal["line", "paragraph"] = "line"
    """What is counted and cut: a line, or the lines between two blank ones."""
    min_docs: int = 10
    """Cut what stands in at least this many documents (of all generations so far) ..."""
    min_chars: int = 10
    """... and is at least this long. Case, width, punctuation and spacing aside; what has no words is never cut."""
    keep: Literal["first", "none"] = "first"
    """Whether the first document that has it keeps it."""
    scope: Literal["all", "host"] = "all"
    """Count over all documents, or over those of one host."""
    min_left: int = 1
    """Drop a document of which fewer characters are left."""

    def __post_init__(self) -> None:
        if self.min_docs < 2:
            raise ValueError(f"min_docs: {self.min_docs} is less than 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubstringsConfig:
    min_tokens: int = 50
    """Cut passages of at least this many words that occurred before, anywhere; token by token the same, punctuation and
    case too. A character of a script without spaces is half a word, so 100 Chinese characters."""
    min_left: int = 1
    """Drop a document of which fewer characters are left."""

    def __post_init__(self) -> None:
        if not 10 <= self.min_tokens <= 10_000:
            raise ValueError(f"min_tokens: {self.min_tokens} is not between 10 and 10,000")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapConfig:
    ngram: int = 13
    """Words in a row that a document must share with an evaluation item."""
    char_ngram: int = 20
    """Characters in a row, where the script puts no spaces between words."""
    min_share: float = 0.0
    """Part of the item's n-grams that one document must hold; 0: one n-gram is enough."""
    action: Literal["drop", "report"] = "drop"

    def __post_init__(self) -> None:
        _check_share(self, "min_share")
        _check_counts(self, "ngram", "char_ngram")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    exact: bool | Literal["raw"] = True
    """Drop documents with the same words as an earlier one (case, width, punctuation and spacing aside); raw: only those
    with the same bytes."""
    url: Literal["off", "first", "newest"] = "off"
    """Keep one document per URL (its `canonical` link where that is on the same host), the first seen or the last fetched."""
    near: MinHashConfig | None = field(default_factory=MinHashConfig)
    """Near-duplicate settings; null turns them off."""
    lines: LinesConfig | None = None
    """Cut lines that many documents share; {} turns it on."""
    substrings: SubstringsConfig | None = None
    """Cut long passages that occurred before; {} turns it on."""
    decontaminate: list[Path] = field(default_factory=list)
    """Evaluation sets (JSONL, CSV, Parquet, or directories of documents) of which nothing may be in the output."""
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    """What counts as an overlap with an evaluation item."""
    sources: list[str] = field(default_factory=list)
    """Sources in order of preference: of duplicates that come together, the one of the source named first stays. What was
    in the output before stays in any case."""
    prefer: Literal["first", "longest"] = "first"
    """Then the first seen, or the longest, stays. Only with `first` and no `sources` does A then B keep what A and B do at once."""
    max_ram_gb: float = cosmetic(0.0)
    """Memory to stay below, all processes together; 0: three quarters of the machine's. What cannot is refused before the start."""

    def __post_init__(self) -> None:
        if self.exact is False and not any((self.near, self.lines, self.substrings, self.decontaminate, self.url != "off")):
            raise ValueError("exact is false, near is null and nothing else is on: there is nothing to do")
        if self.max_ram_gb < 0:
            raise ValueError(f"max_ram_gb: {self.max_ram_gb} is negative")


def _check_share(config: Any, name: str, *, above_zero: bool = False) -> None:
    value = getattr(config, name)
    if not 0 <= value <= 1 or (above_zero and value == 0):
        raise ValueError(f"{name}: {value} is not {'above' if above_zero else 'at least'} 0 and at most 1")


def _check_counts(config: Any, *names: str) -> None:
    for name in names:
        if not 1 <= getattr(config, name) <= 1024:
            raise ValueError(f"{name}: {getattr(config, name)} is not between 1 and 1024")
