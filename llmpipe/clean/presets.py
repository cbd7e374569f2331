"""Named sets of filters with published thresholds, each in variants for the languages it covers.

    PRESETS["fineweb"]()["en"]     ->  the filters that an English document meets, in order

The variant follows the document: `en`, `zh`, `words` (other languages that put spaces between words) or `characters`
(Japanese, Thai, Lao, Khmer, Burmese). `llmpipe list presets` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmpipe.clean.rules import CHINESE_STOP_WORDS, C4Filter, C4Paragraphs, FineWebQuality, GopherQuality, GopherRepetition, LineFilter

Variants = dict[str, list[Any]]

# FineWeb-2, configs/cmn_Hani.yml; paragraph rules and repeated characters of lines are off there
_ZH_REPETITION = GopherRepetition(
    dup_line_frac=0.287, dup_para_frac=None, dup_line_char_frac=None, dup_para_char_frac=None,
    top_2_gram=0.256, top_3_gram=0.201, top_4_gram=0.171,
    dup_5_gram=0.198, dup_6_gram=0.182, dup_7_gram=0.167, dup_8_gram=0.154, dup_9_gram=0.140, dup_10_gram=0.127,
)  # fmt: skip
_ZH_QUALITY = GopherQuality(min_mean_word_length=1, max_mean_word_length=5, min_alpha_words=0.735, min_stop_words=2, stop_words=CHINESE_STOP_WORDS)
_ZH_LINES = FineWebQuality(min_punctuated_lines=0.106, max_short_lines=None, max_dup_line_chars=0.1, max_newline_ratio=0.178)

# No stop words are known for the rest; word length is wider, since German compounds and Finnish cases pass 10 on some pages
_WORDS_QUALITY = GopherQuality(min_mean_word_length=2, max_mean_word_length=14, min_alpha_words=0.75, min_stop_words=None, stop_words=())
_CHARACTERS_QUALITY = replace(_ZH_QUALITY, min_stop_words=None, stop_words=(), max_mean_word_length=10)
_WORDS_LINES = FineWebQuality(max_dup_line_chars=0.05)


def gopher() -> Variants:
    """Gopher's repetition and quality rules; Chinese by FineWeb-2's numbers, without stop words elsewhere."""
    return {
        "en": [GopherRepetition(), GopherQuality()],
        "zh": [_ZH_REPETITION, _ZH_QUALITY],
        "words": [GopherRepetition(), _WORDS_QUALITY],
        "characters": [_ZH_REPETITION, _CHARACTERS_QUALITY],
    }


def c4() -> Variants:
    """C4's rules with terminal punctuation: lines of 3 words, pages of 5 sentences; languages with spaces alone."""
    return {"en": [C4Filter()], "zh": [], "words": [C4Filter()], "characters": []}


def c4_paper() -> Variants:
    """The same with lines of 5 words and pages of 3 sentences, as in the later text of C4's paper and in DCLM."""
    lines = C4Filter(min_words_per_line=5, min_sentences=3)
    return {"en": [lines], "zh": [], "words": [lines], "characters": []}


def mc4() -> Variants:
    """mC4: at least three lines of 200 characters; of 80 in scripts without spaces, which say as much in them (mC4 asked 200 of all)."""
    long, dense = C4Paragraphs(), C4Paragraphs(min_chars=80)
    return {"en": [long], "zh": [dense], "words": [long], "characters": [dense]}


def fineweb() -> Variants:
    """FineWeb's recipe: Gopher, C4 without terminal punctuation, FineWeb's own rules; Chinese as fineweb2-zh."""
    lines = C4Filter(terminal_punctuation=False)
    return {
        "en": [GopherRepetition(), GopherQuality(), lines, FineWebQuality()],
        "zh": [_ZH_REPETITION, _ZH_QUALITY, _ZH_LINES],
        "words": [GopherRepetition(), _WORDS_QUALITY, lines, _WORDS_LINES],
        "characters": [_ZH_REPETITION, _CHARACTERS_QUALITY, _ZH_LINES],
    }


def fineweb2_zh() -> Variants:
    """FineWeb-2's numbers for Chinese, other languages pass: Gopher's rules and FineWeb's lines, no C4."""
    return {"en": [], "zh": [_ZH_REPETITION, _ZH_QUALITY, _ZH_LINES], "words": [], "characters": []}


def refinedweb() -> Variants:
    """RefinedWeb: Gopher's rules, then corrections of lines; a page that loses 5 % of its words to them goes."""
    lines = LineFilter()
    return {name: [*filters, lines] for name, filters in gopher().items()}


def dclm() -> Variants:
    """DCLM-Baseline's heuristics: as refinedweb, with its bullets, and stop words counted each time. The classifier is apart."""
    quality = GopherQuality(bullets="●•*-", distinct_stop_words=False)
    return {**refinedweb(), "en": [quality, GopherRepetition(), LineFilter()]}


PRESETS: dict[str, Callable[[], Variants]] = {
    "gopher": gopher,
    "c4": c4,
    "c4-paper": c4_paper,
    "mc4": mc4,
    "fineweb": fineweb,
    "fineweb2-zh": fineweb2_zh,
    "refinedweb": refinedweb,
    "dclm": dclm,
}
