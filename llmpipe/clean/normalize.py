"""Bring a text into one form without changing what it says: mojibake mended, Unicode NFC, one newline, no control characters.

    normalize("a\\r\\nb\\u200b\\ufeff")  ->  "a\\nb"

Kept as they are: traditional and simplified characters, full-width punctuation, indentation, emoji with their joiners,
the joiners that Persian and Indic scripts need.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

import numpy as np

from llmpipe.clean.repair import repair, suspicious

_NEWLINES = re.compile("[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0001]")
_STRANGE_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_BLANK_LINES = re.compile("\n{4,}")
_JOINERS = re.compile("(?<![\u0600-\u0fff\u1000-\u109f\u1780-\u17ff\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]")
_TAGS = re.compile("(?<!\U0001f3f4)(?<![\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+")
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\ufeff\ufff9-\uffff\U000e0000-\U000e007f]")

REPLACEMENT = "\ufffd"


def _plain(text: str) -> bool:
    """Whether no code point needs a look: a table tells it ten times as fast as the patterns."""
    if text.isascii():
        return not text.encode().translate(None, _PLAIN_ASCII)
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return not _suspects().take(code_points, mode="clip").any()


_PLAIN_ASCII = bytes([9, 10, *range(0x20, 0x7F)])


@cache
def _suspects() -> np.ndarray:
    """(0x20001,) bool by code point; what lies beyond (rare Han, tags) is looked at, which the last entry stands for."""
    table = np.zeros(0x20001, bool)
    chars = [*range(0x20), *range(0x7F, 0x3000), *range(0xFB00, 0x10000)]  # in between are Han, kana and Hangul
    table[chars] = [bool(_SUSPECT.match(chr(c)) or suspicious(chr(c))) for c in chars]
    table[[9, 10]] = False
    table[0xD800:0xE000] = table[0x20000] = True
    return table


def normalize(text: str) -> str:
    """Return the text in its one form. Equal input gives equal output, and the output is a fixed point."""
    if not _plain(text):
        mended = _mend(text)
        while mended != text:  # what was taken out may have held two parts of a fault apart
            text, mended = mended, _mend(mended)
    elif not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if " \n" in text or "\t\n" in text or "\u3000\n" in text:  # no pattern: it would try every space of an indentation
        text = "\n".join([line.rstrip(" \t\u3000") for line in text.split("\n")])
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


def _mend(text: str) -> str:
    if not _is_utf8(text):  # JSON written by JavaScript or Java: two halves are one character
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unicodedata.normalize("NFC", repair(text))
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    text, changes = _SUSPECT.subn(_replacement, text)
    if changes:
        if "\u200c" in text or "\u200d" in text:
            text = _JOINERS.sub("", text)
        text = _TAGS.sub("", text)
        text = unicodedata.normalize("NFC", text)  # what stood between two marks may be gone
    return text


def _replacement(found: re.Match[str]) -> str:
    char = found[0]
    if _CONTROLS.match(char):
        return ""
    return "\n" if _NEWLINES.match(char) else " " if _STRANGE_SPACES.match(char) else char


def _is_utf8(text: str) -> bool:
    """Whether there are no lone surrogates; the quickest way to find out."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
