"""Repair text that was decoded wrongly or comes in presentation forms: mojibake, C1 controls, ligatures, full-width ASCII.

    repair("itâ€™s a cafÃ©")   ->   "it’s a café"
    repair("ä¸­æ–‡ ＡＢＣ")      ->   "中文 ABC"

UTF-8 that was read as Windows-1252 or Latin-1, once or more often, is turned back where the bytes make characters that people
write and chance is ruled out: three bytes or more, several in a row, or the same fault all over the document. A lone `Â»` or `Ü“`
stays, for capitals before closing quotes are honest text. GBK read as Latin-1 is not touched: any two letters would be a
candidate. Text without a suspect sequence costs one regular expression; the result is a fixed point.
"""

from __future__ import annotations

import re

# what Windows-1252 shows for the bytes 0x80-0xbf, and the code points themselves, as Latin-1 has them
_CP1252 = {ord(bytes([b]).decode("cp1252", "replace")): b for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_TAIL = "\x80-\xbf" + "".join(map(chr, _CP1252))
_SEQUENCE = f"[\xc2-\xdf][{_TAIL}]|[\xe0-\xef][{_TAIL}]{{2}}|[\xf0-\xf4][{_TAIL}]{{3}}"
_RUN = re.compile(f"(?:{_SEQUENCE})+")
_ONE = re.compile(_SEQUENCE)
_SUSPECT = re.compile(f"[\xc2-\xf4][{_TAIL}]")
_BYTES = {code: chr(byte) for code, byte in _CP1252.items()}

_PLAUSIBLE = re.compile(
    "[\xa0-\u017f\u0192\u01a0\u01a1\u01af\u01b0\u01cd-\u01dc\u0218-\u021b\u02c6\u02dc\u0370-\u03ff\u0400-\u045f\u0490\u0491\u05d0-\u05ea\u0600-\u06ff\u0900-\u0dff\u0e00-\u0e7f\u1e00-\u1eff\u200b-\u203a\u2070-\u218f\u2190-\u27bf"
    "\u2c60-\u2c7f\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3\ufb01\ufb02\ufeff\uff01-\uffef\U0001f000-\U0001faff\U00020000-\U0002ffff]+"
)
_SAFE_PAIR = re.compile(
    "[\xc3-\xc5][\xa0-\xaa\xac-\xba\xbc-\xbf\u20ac\u201a\u201e\u0192\u2020\u2021\u2030\u02c6\u0160\u0152\u017d\u2122\u0161\u0153\u017e\u0178]|\xc2[\xa0\xa3\xa7\xa9\xae\xb0\xb1\xb4\xb5\xb7\xbc\xbd\xbe\xbf\u20ac]|[\xc2-\xdf][\x80-\x9f]"
)
"""Pairs that no language writes: Â, Ã, Ä, Å and a sign. Not among them: those with a closing quotation mark or a dash (Â», Ã“), since
capitals stand before these. They do in words of capitals: between small letters such a pair is certain, too."""
MIN_EVIDENCE = 2
"""Doubtful pairs are turned back from so many certain sequences in a document on."""

_C1 = re.compile("[\x80-\x84\x86-\x9f]")
_C1_MAP = {byte: code for code, byte in _CP1252.items()}
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_LIGATURE = re.compile("[\ufb00-\ufb06]")
_FULL_WIDTH_LINE = re.compile("^[^\n]*[\uff01-\uff5e][^\n]*$", re.MULTILINE)
_EAST_ASIAN = re.compile("[\u1100-\u11ff\u2e80-\u2fff\u3001-\u31ff\u3400-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff61-\uffdc\U00020000-\U0003ffff]|[\uff01-\uff5e][\u3000 ]?$")
_ASCII_FORMS = {0xFF01 + i: 0x21 + i for i in range(94)}
_FULL_WIDTH_WORD = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
_ANY = re.compile("[\x80-\x84\x86-\x9f\xc2-\xf4\ufb00-\ufb06\uff10-\uff5a]")
"""One look that spares most texts the others."""
_ANSI = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\][^\x07\x1b\n]*(?:\x07|\x1b\\\\)")
_OVERSTRIKE = re.compile("[^\n\x08]\x08")


def suspicious(char: str) -> bool:
    """Whether a text with this character must go through `repair`."""
    return char in "\x08\x1b" or _ANY.match(char) is not None


def repair(text: str) -> str:
    """Return the text with such faults mended. Newlines, spaces and control characters are `normalize`'s part."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    while "\x08" in text and (shorter := _OVERSTRIKE.sub("", text)) != text:  # bold and underlined text of terminals
        text = shorter
    if text.isascii() or not _ANY.search(text):
        return text
    while _SUSPECT.search(text):  # each turn shortens the text
        mended = _mend(text)
        if mended == text:
            break
        text = mended
    if _C1.search(text):
        text = text.translate(_C1_MAP)
    if _LIGATURE.search(text):
        text = text.translate(_LIGATURES)
    if _FULL_WIDTH_WORD.search(text):
        text = _FULL_WIDTH_LINE.sub(lambda m: m[0] if _EAST_ASIAN.search(m[0]) or not _FULL_WIDTH_WORD.search(m[0]) else m[0].translate(_ASCII_FORMS).replace("\u3000", " "), text)
    return text


def _mend(text: str) -> str:
    """Turn back one layer of mojibake."""
    evidence = sum(_certain(m, text) for m in _ONE.finditer(text))
    return _RUN.sub(lambda m: _mend_run(m, text, evidence), text)


def _mend_run(m: re.Match[str], text: str, evidence: int) -> str:
    decoded = _decoded(m[0])
    return m[0] if decoded is None or (len(m[0]) == 2 and evidence < MIN_EVIDENCE and not _certain(m, text)) else decoded


def _certain(m: re.Match[str], text: str) -> bool:
    """Tell a sequence that stands for itself from one that needs company."""
    if len(m[0]) > 2 or _SAFE_PAIR.fullmatch(m[0]):
        return _decoded(m[0]) is not None
    if m[0][1].isalpha():  # Úžasný
        return False
    small = text[max(m.start() - 1, 0) : m.start()], text[m.end() : m.end() + 1]
    return ("a" <= small[0] <= "z" or ("a" <= small[1] <= "z" and m[0][1] != "\u2019")) and _decoded(m[0]) is not None


def _decoded(run: str, depth: int = 0) -> str | None:
    """Decode a run of suspect sequences; None where the result is nothing that people write, in two more layers either."""
    try:
        decoded = run.translate(_BYTES).encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return None
    if _PLAUSIBLE.fullmatch(decoded) and not _SUSPECT.search(decoded):
        return decoded
    deeper = _RUN.sub(lambda m: _decoded(m[0], depth + 1) or m[0], decoded) if depth < 3 else decoded
    return deeper if _PLAUSIBLE.fullmatch(deeper) else None
