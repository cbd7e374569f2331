"""Say which language each document is in, as a BCP-47 code with a score from 0 to 1.

    languages, scores = identify(block)

Three steps, each for what the one before leaves open (docs/language_id.md has the measurements):

1. Scripts that one language owns decide by their share of the words: Han without kana is zh, kana is ja, Hangul is ko, Thai is th, …
2. Text full of English function words and of no other language's is English. All from token hashes, so it costs next to nothing.
3. The rest is read by py3langid in three windows of the text. A rare language needs more evidence than a common one, and
   program text, tables and a word or two are `und`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from llmpipe.text.block import Block, HashSet
from llmpipe.text.characters import NO_SCRIPT, SCRIPTS, WORD

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

COMMON = frozenset(
    "af ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko la lt lv mk ml mn mr ms my"
    " nb ne nl nn no pa pl ps pt ro ru si sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh".split()
)
"""Languages that a page is taken to be in without further doubt. py3langid knows 80 more, and sees them in lists of names."""
RARE_SCORE, RARE_LETTERS = 0.9, 300
MIN_SCORE, MIN_LETTERS = 0.15, 12
"""Below these nothing can be said."""

_ENGLISH = tuple("the of and is that with this which are from by be it not you was have if when or can has its will an then been their they would there these".split())
_OTHER = tuple(
    (
        "der das und ist nicht ein eine den von zu auf für im le la les une est dans pour que qui sur pas el los las "
        "una por para se del il di che non per della een van niet dat voor aan os um uma não da na em w z się nie jest "
        "på och att det som är av til er og ikke ve bir bu için ne v od ja ei že jsou és egy az nem că din și ca nu "
        "yang dan untuk dengan của và là các cho"
    ).split()
)
"""Function words; of those here none is English. What English shares with others (in, as, for, to, on, at, do) is in neither."""
MIN_ENGLISH, MAX_OTHER = 0.08, 0.2
"""Share of an English text's words in _ENGLISH (manuals 0.15 and more), and how many of _OTHER there may be for each."""


def identify(block: Block) -> tuple[list[str], np.ndarray]:
    """Return (D,) codes and (D,) float32 scores; `und` and 0 for a text without letters."""
    shares, letters = script_shares(block)
    english = _english(block)
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
        elif english[i] and best == "latin":
            code, score = "en", english[i]
        else:
            code, score = _classify(text, int(letters[i]))
        languages.append(code)
        scores[i] = min(float(score), 1.0)
    return languages, scores


def script_shares(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Return (D, len(SCRIPTS)), each script's share of a document's words, as its letters would make them, and (D,) letters."""
    scripts = block.tables.script.take(block.code_points, mode="clip")
    letters = np.flatnonzero(scripts != NO_SCRIPT)
    docs = np.searchsorted(block.doc_ends, letters, side="right")
    size = len(SCRIPTS)
    counts = np.bincount(docs * size + scripts[letters], minlength=block.num_docs * size).reshape(block.num_docs, size)
    words = counts / np.array([_LETTERS_PER_WORD.get(name, _WORD) for name in SCRIPTS])
    return words / np.maximum(words.sum(axis=1, keepdims=True), 1e-9), counts.sum(axis=1)


def _english(block: Block) -> np.ndarray:
    """(D,) a score where function words alone make a document English, 0 elsewhere."""
    words, kinds = _function_words()
    hits, at = words.find(block.raw_token_hashes)
    docs, ours = block.token_docs[hits], kinds[at]
    english, other = block.per_doc(docs, ours.astype(float)), block.per_doc(docs, 1.0 - ours)
    total = block.per_doc(block.token_docs, (block.token_kinds == WORD).astype(float))
    sure = (english >= 10) & (english >= MIN_ENGLISH * total) & (other <= MAX_OTHER * english)
    return np.where(sure, english / np.maximum(english + other, 1), 0.0)


@cache
def _function_words() -> tuple[HashSet, np.ndarray]:
    """The set of both lists, and whether each of its hashes is of an English word."""
    hashes = Block([*_ENGLISH, *_OTHER]).raw_token_hashes
    words = HashSet(np.unique(hashes))
    return words, np.isin(words.hashes, hashes[: len(_ENGLISH)])


@cache
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


_CODES = {"yue": "zh", "wuu": "zh", "zxx": UNKNOWN, "arz": "ar", "ary": "ar", "pcm": "en", "nb": "no", "nn": "no", "hbs": "sr"}


def _classify(text: str, letters: int) -> tuple[str, float]:
    if len(text) > 3 * WINDOW:
        middle = len(text) // 2
        text = " ".join((text[:WINDOW], text[middle : middle + WINDOW], text[-WINDOW:]))
    code, score = _model().classify(text)
    code = _CODES.get(code, code)
    if code == UNKNOWN or letters < MIN_LETTERS or score < MIN_SCORE:
        return UNKNOWN, 0.0
    if code not in COMMON and (score < RARE_SCORE or letters < RARE_LETTERS):
        return next(((known, rank) for name, rank in _model().rank(text) if (known := _CODES.get(name, name)) in COMMON and rank >= MIN_SCORE), (UNKNOWN, 0.0))
    return code, score


def profile(language: str) -> str:
    """Name the variant of a preset that fits a language: `en`, `zh`, `characters` (no spaces between words) or `words`."""
    if language in ("en", "zh"):
        return language
    return "characters" if language in ("ja", "th", "lo", "km", "my", "bo") else "words"
