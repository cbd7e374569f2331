"""Say which language each document is in, as a BCP-47 code with a score from 0 to 1.

    languages, scores = identify(block)

Scripts that one language owns decide by their share of the words (Han without kana is zh, kana is ja, Hangul is ko,
Thai is th, …). For the rest the packaged model of py3langid reads three windows of the text (measured on manuals and
books: 0.2 ms a document; 300 of 300 English manual pages right with three windows, 295 with the first 600 characters,
which are often a table of options).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from llmpipe.text.block import Block
from llmpipe.text.characters import NO_SCRIPT, SCRIPTS

UNKNOWN = "und"
CHARS_PER_WORD = 1.6
"""Han characters that make up a word on average (jieba on news and encyclopedia text)."""
WINDOW = 300
OWN_SCRIPT = {
    "hangul": "ko", "thai": "th", "greek": "el", "hebrew": "he", "armenian": "hy", "georgian": "ka", "tamil": "ta", "telugu": "te", "kannada": "kn",
    "malayalam": "ml", "gujarati": "gu", "gurmukhi": "pa", "sinhala": "si", "lao": "lo", "khmer": "km", "myanmar": "my", "tibetan": "bo",
}  # fmt: skip
_WORD = 5.0
_LETTERS_PER_WORD = {"han": CHARS_PER_WORD, "kana": 2.5, "hangul": 2.7, "thai": 4.0, "lao": 4.0, "khmer": 4.0, "myanmar": 3.0, "tibetan": 3.0}
MIN_SHARE = 0.35
"""A page is in the script of its own language from this share of words on: Chinese technical pages are full of English
names, while English pages seldom hold a third of Chinese."""
KANA_SHARE = 0.1
"""Japanese text has at least this share of kana among its Han and kana (measured on news: 0.35 and more); Chinese has none."""


def identify(block: Block) -> tuple[list[str], np.ndarray]:
    """Return (D,) codes and (D,) float32 scores; `und` and 0 for a text without letters."""
    shares = script_shares(block)
    number = {name: i for i, name in enumerate(SCRIPTS)}
    languages, scores = [], np.zeros(block.num_docs, np.float32)
    for i, text in enumerate(block.texts):
        share = shares[i]
        if not share.any():
            languages.append(UNKNOWN)
            continue
        east = share[number["han"]] + share[number["kana"]]
        best = SCRIPTS[int(share.argmax())]
        if east >= MIN_SHARE:
            japanese = share[number["kana"]] * 2.5 > KANA_SHARE * (share[number["kana"]] * 2.5 + share[number["han"]] * CHARS_PER_WORD)
            code, score = "ja" if japanese else "zh", east
        elif (own := max(OWN_SCRIPT, key=lambda s: share[number[s]])) and share[number[own]] >= MIN_SHARE:
            code, score = OWN_SCRIPT[own], share[number[own]]
        elif best in OWN_SCRIPT:
            code, score = OWN_SCRIPT[best], share[number[best]]
        else:
            code, score = _classify(text)
        languages.append(code)
        scores[i] = min(float(score), 1.0)
    return languages, scores


def script_shares(block: Block) -> np.ndarray:
    """Return (D, len(SCRIPTS)): each script's share of a document's words, as its letters would make them."""
    scripts = block.tables.script.take(block.code_points, mode="clip")
    letters = np.flatnonzero(scripts != NO_SCRIPT)
    docs = np.searchsorted(block.doc_ends, letters, side="right")
    size = len(SCRIPTS)
    counts = np.bincount(docs * size + scripts[letters], minlength=block.num_docs * size).reshape(block.num_docs, size)
    words = counts / np.array([_LETTERS_PER_WORD.get(name, _WORD) for name in SCRIPTS])
    return words / np.maximum(words.sum(axis=1, keepdims=True), 1e-9)


@cache
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


_CODES = {"yue": "zh", "wuu": "zh", "zxx": UNKNOWN, "arz": "ar", "ary": "ar"}


def _classify(text: str) -> tuple[str, float]:
    if len(text) > 3 * WINDOW:
        middle = len(text) // 2
        text = " ".join((text[:WINDOW], text[middle : middle + WINDOW], text[-WINDOW:]))
    code, score = _model().classify(text)
    return _CODES.get(code, code), score


def profile(language: str) -> str:
    """Name the variant of a preset that fits a language: `en`, `zh`, `characters` (no spaces between words) or `words`."""
    if language in ("en", "zh"):
        return language
    return "characters" if language in ("ja", "th", "lo", "km", "my", "bo") else "words"
