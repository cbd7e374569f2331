"""Bring a text into one form without changing what it says: mojibake mended, Unicode NFC, one newline, no control characters.

    normalize("a\\r\\nb\\u200b\\ufeff")  ->  "a\\nb"

Kept as they are: traditional and simplified characters, full-width punctuation, indentation, emoji with their joiners,
the joiners that Persian and Indic scripts need.
"""

from __future__ import annotations

import re
import unicodedata

from llmpipe.clean.repair import repair

_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0001]")
_STRANGE_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_TRAILING = re.compile("[ \t\u3000]+\n")
_BLANK_LINES = re.compile("\n{4,}")
_JOINERS = re.compile("(?<![\u0600-\u0fff\u1000-\u109f\u1780-\u17ff\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]")
_TAGS = re.compile("(?<!\U0001f3f4)(?<![\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+")
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\ufeff\ufff9-\uffff\U000e0000-\U000e007f]")

REPLACEMENT = "\ufffd"


def normalize(text: str) -> str:
    """Return the text in its one form. Equal input gives equal output, and the output is a fixed point."""
    once = _normalize(text)
    while once != text and not once.isascii():  # what was taken out may have held two parts of a fault together; rare
        text, once = once, _normalize(once)
    return once


def _normalize(text: str) -> str:
    if not text.isascii() or "\x1b" in text or "\x08" in text:
        if not _is_utf8(text):  # JSON written by JavaScript or Java: two halves are one character
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = unicodedata.normalize("NFC", repair(text))
    if _SUSPECT.search(text):
        text = _NEWLINES.sub("\n", text)
        text = _CONTROLS.sub("", text)
        text = _STRANGE_SPACES.sub(" ", text)
        text = _JOINERS.sub("", text)
        text = _TAGS.sub("", text)
        text = unicodedata.normalize("NFC", text)  # what stood between two marks may be gone
    if " \n" in text or "\t\n" in text or "\u3000\n" in text:
        text = _TRAILING.sub("\n", text)
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


def _is_utf8(text: str) -> bool:
    """Whether there are no lone surrogates; the quickest way to find out."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
