"""What every code point is: its kind, script, flags, and the 64-bit values that token hashes are made of.

    tables = characters()          # built once a process, about 0.06 s
    tables.kind.take(code_points, mode="clip")

Reads `unicodedata` alone. All tables have one entry per code point below TABLE_SIZE; `mode="clip"` sends the few beyond
(tags, private use) to the last one, which is a mark without value.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np

TABLE_SIZE = 0x32400  # planes 0 to 2 and the assigned part of plane 3: all of Han

SPACE, WORD, SINGLE, MARK, PUNCT, JOINER = range(6)
"""Kinds. WORD: letters and digits that form runs. SINGLE: a token of its own, since its script puts no spaces between
words (Han, kana, Thai, Lao, Khmer, Burmese). MARK: belongs to the code point before it. PUNCT: punctuation and symbols. JOINER: an apostrophe, a dot or a comma, which Block turns into MARK or PUNCT. SPACE: the rest."""

SCRIPTS = ("other", "latin", "han", "kana", "hangul", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "thai", "armenian", "georgian", "bengali", "tamil", "telugu", "kannada", "malayalam", "gujarati", "gurmukhi", "sinhala", "lao", "khmer", "myanmar", "ethiopic", "tibetan")
NO_SCRIPT = 255

ALPHA, DIGIT, TERMINAL, C4_TERMINAL, CLOSING, UPPER, ELLIPSIS, SENTENCE = (1 << i for i in range(8))

TERMINAL_PUNCTUATION = (
    "!.?\u0589\u061d\u061e؟۔\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e।॥\u104a\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9"
    "\u17da\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d\u2047\u2048\u2049\u2e2e\u2e3c\u2e53\u2e54。\ua4ff"
    "\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57！\uff0e？\uff61"
)
"""Unicode's sentence terminals of the basic plane, which FineWeb's rule on line ends counts. Closing quotes are not among them,
in Chinese either: its threshold was found without them."""
CLOSING_PUNCTUATION = "\"'”’」』）》】)]»｣"
"""May stand between the end of a sentence and the space after it."""
C4_TERMINAL_PUNCTUATION = ".?!\"'。！？；…”’」』）"
"""The five of C4 and what serves for them in Chinese."""
SENTENCE_PUNCTUATION = ".?!。！？…؟۔।॥｡"

_LONE = ",:;!?¿¡()[]{}<>#*&%=§\"'。？！，、；：～·“”‘’«»「」『』（）《》【】،؛؟۔।"
_LONE_RANGES = ((0x2190, 0x2C00), (0x1F000, 0x1FB00))

_SCRIPT_OF_NAME = {
    "LATIN": "latin", "CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "HALFWIDTH": "kana", "HANGUL": "hangul", "CYRILLIC": "cyrillic", "GREEK": "greek",
    "FULLWIDTH": "latin", "BOPOMOFO": "han", "MODIFIER": "other",
}  # fmt: skip
_FOLDED_SCRIPTS = {"latin", "greek", "cyrillic"}
_SINGLE_SCRIPTS = {"han", "kana", "thai", "lao", "khmer", "myanmar", "tibetan"}
_DIACRITICS = ((0x300, 0x370), (0x483, 0x48A), (0x591, 0x5BE), (0x5BF, 0x5C8), (0x610, 0x61B), (0x64B, 0x660), (0x1AB0, 0x1B00), (0x1DC0, 0x1E00), (0x20D0, 0x2100), (0xFE00, 0xFE10), (0xFE20, 0xFE30), (0x200B, 0x200E))
"""Marks that don't tell words apart (accents, points, variation selectors, zero-width): their folded value is 0.
The vowel signs of Indic and Thai script are not among them."""

_SEED_FOLDED, _SEED_EXACT, _SEED_RAW = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9


@dataclass(frozen=True, slots=True)
class Characters:
    kind: np.ndarray
    """uint8: SPACE, WORD, …"""
    script: np.ndarray
    """uint8: index in SCRIPTS of letters, NO_SCRIPT of all else."""
    flags: np.ndarray
    """uint8: ALPHA, DIGIT, …"""
    lone: np.ndarray
    """bool: a punctuation mark or symbol that is a token even in a run of the same; of others (---, ...) the run is one."""
    folded: np.ndarray
    """uint64 for candidates: case, width and accents folded, every digit the same, 0 for spaces and punctuation."""
    exact: np.ndarray
    """uint64 for verification: case and width folded, accents and digits kept, 0 for spaces and punctuation."""
    raw: np.ndarray
    """uint64 as it stands, 0 for spaces."""


def fmix64(x: np.ndarray) -> np.ndarray:
    """Apply MurmurHash3's 64-bit finalizer in place and return its argument."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x


@cache
def characters() -> Characters:
    """Build the tables."""
    kind = np.zeros(TABLE_SIZE, np.uint8)
    script = np.full(TABLE_SIZE, NO_SCRIPT, np.uint8)
    flags = np.zeros(TABLE_SIZE, np.uint8)
    lower = np.arange(TABLE_SIZE, dtype=np.int64)  # case and width folded
    fold = lower.copy()  # and without accents, digits alike
    number = {name: i for i, name in enumerate(SCRIPTS)}
    uniform = ((0x3400, 0x4DC0, "han", SINGLE), (0x4E00, 0xA000, "han", SINGLE), (0x20000, 0x323B0, "han", SINGLE), (0xAC00, 0xD7A4, "hangul", WORD))
    for start, end, name, its_kind in uniform:  # 80,000 code points that need no look at each
        kind[start:end], script[start:end], flags[start:end] = its_kind, number[name], ALPHA
    skip = {start: end for start, end, _, _ in uniform}
    code = 0
    while code < 0x20000:
        if code in skip:
            code = skip[code]
            continue
        char = chr(code)
        category = unicodedata.category(char)
        if category[0] in "LN":
            name = _script_name(char)
            if category[0] == "L":
                flags[code] |= ALPHA | UPPER if category == "Lu" else ALPHA
                script[code] = number[name]
            else:
                flags[code] |= DIGIT
            kind[code] = SINGLE if name in _SINGLE_SCRIPTS and category[0] == "L" else WORD
            wide = unicodedata.normalize("NFKC", char)
            small = (wide if len(wide) == 1 else char).lower()
            lower[code] = fold[code] = ord(small[0])
            if category == "Nd":
                lower[code], fold[code] = ord(str(unicodedata.digit(char))), ord("0")
            elif name in _FOLDED_SCRIPTS:
                fold[code] = ord(unicodedata.normalize("NFKD", small)[0].lower())
        elif category[0] == "M" or char in "\u200b\u200c\u200d\u2060\ufeff\u00ad":
            kind[code] = MARK
        elif char == "_":
            kind[code] = WORD  # names in program text are one word
        elif char in "'’.,":
            kind[code] = JOINER
        elif category[0] != "Z" and category != "Cc":
            kind[code] = PUNCT  # private use and what this Unicode version doesn't know, too
        code += 1
    kind[TABLE_SIZE - 1] = MARK
    for text, flag in ((TERMINAL_PUNCTUATION, TERMINAL), (C4_TERMINAL_PUNCTUATION, C4_TERMINAL), (SENTENCE_PUNCTUATION, SENTENCE), (CLOSING_PUNCTUATION, CLOSING), ("…", ELLIPSIS)):
        flags[[ord(c) for c in text]] |= flag

    silent = (kind == SPACE) | (kind == PUNCT) | (kind == JOINER)
    folded = fmix64(fold.astype(np.uint64) + np.uint64(_SEED_FOLDED))
    exact = fmix64(lower.astype(np.uint64) + np.uint64(_SEED_EXACT))
    raw = fmix64(np.arange(TABLE_SIZE, dtype=np.uint64) + np.uint64(_SEED_RAW))
    folded[silent] = exact[silent] = 0
    raw[kind == SPACE] = 0
    for start, end in _DIACRITICS:
        folded[start:end][kind[start:end] == MARK] = 0
    for zero_width in (0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD, TABLE_SIZE - 1):
        folded[zero_width] = exact[zero_width] = 0
    lone = np.zeros(TABLE_SIZE, bool)
    lone[[ord(c) for c in _LONE]] = True
    for start, end in _LONE_RANGES:
        lone[start:end] = True
    return Characters(kind, script, flags, lone, folded, exact, raw)


def _script_name(char: str) -> str:
    word = unicodedata.name(char, "").partition(" ")[0].partition("-")[0]
    name = _SCRIPT_OF_NAME.get(word, word.lower())
    if word == "HALFWIDTH" and "HANGUL" in unicodedata.name(char):
        name = "hangul"
    return name if name in SCRIPTS else "other"
