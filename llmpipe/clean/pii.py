"""Find personal data in text: e-mail, public IP addresses, phone numbers, Chinese ID numbers.

    redact("mail a@b.org or 13812345678")  ->  ("mail <EMAIL> or <PHONE>", {"email": 1, "phone": 1})

Precision counts as much as recall, for each false hit damages good text: numbers must have a valid check digit, country
code or number range, and four small numbers with dots are an address only where the words before them say so; elsewhere
they are a version or a section.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from datetime import date
from functools import partial

KINDS = ("email", "ip", "phone", "id_number")
PLACEHOLDERS = {"email": "<EMAIL>", "ip": "<IP>", "phone": "<PHONE>", "id_number": "<ID_NUMBER>"}

_EMAIL = re.compile(r"(?<![\w.+%/:-])[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24})(?![A-Za-z0-9_@-]|\.[A-Za-z0-9])", re.ASCII)
_EMAIL_AFTER_SCHEME = re.compile(r"(?<=mailto:)[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}([A-Za-z]{2,24})(?![A-Za-z0-9_@-])", re.ASCII | re.IGNORECASE)
_NOT_TLD = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "html", "htm", "php", "py", "txt", "service", "timer", "socket", "target", "conf", "json", "xml", "yaml", "yml"}
"""Endings of file and unit names: icon@2x.png and getty@tty1.service are no mailboxes."""

_IPV4 = re.compile(r"(?<![\w.:/@+-])(?:(?<!\d)\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|\.[A-Za-z])|(?<=://)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)|(?<=@)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_IP_CONTEXT = re.compile(r"\b(?:ips?|ipv4|address(?:es)?|addr|hosts?|hostname|server|dns|resolver|nameserver|ping|client|peer|gateway|login|ssh|telnet|from|connect(?:ed|ion)?|subnet|network|remote|https?|inet)\b|地址|服务器|伺服器|主机|主機|网关|網關|登录|登錄", re.IGNORECASE)
_VERSION_CONTEXT = re.compile(r"(?:\b(?:versions?|ver|v|release[ds]?|rev(?:ision)?|build|update|upgrade[ds]?|firmware|driver|patch|sections?|chapters?|clause|figure|table|appendix|paragraph|article|rfc|oid|part|step)\.?|版本?|版本号|第|章|节|節|条|條|§)[\s:=#(]*$", re.IGNORECASE)
_RESOLVERS = {"1.1.1.1", "8.8.8.8", "8.8.4.4", "9.9.9.9"}
_CONTEXT_CHARS = 40

_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)", re.ASCII)

_NUMBER = re.compile(r"(?<![\w.,#@*^$€£¥%/\\-])(?:\+\s?|00|\()?[0-9](?:[0-9]|(?:[ .()\u2010-\u2013-]|\) |  ?\()(?=[0-9(])){6,22}[0-9Xx](?!\w|[.,]\d|%|[-/]\d)", re.ASCII)
_NUMBER_AFTER_SCHEME = re.compile(r"(?<=tel:)\+?[0-9][0-9-]{6,18}[0-9]", re.ASCII | re.IGNORECASE)
_CN_MOBILE = re.compile(r"(?:\+?86|0086)?1(?:3\d|4[014-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])\d{8}")
_CN_LANDLINE = re.compile(r"\(?0(?:10|2[0-57-9]|[3-9]\d{2})\)?[- ][2-8]\d{6,7}")
_NANP = re.compile(r"(?:\+?1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-. ]\d{4}")
_CALLING_CODES = re.compile(
    r"(?:1[2-9]|7[3-9]|2[07]|2[1-69]\d|3[0-469]|3[578]\d|4[013-9]|42[013]|5[1-8]|50\d|59\d|6[0-6]|6[789]\d|8[1246]|80[08]|85[02356]|8[78][0168]|9[0-58]|9[679]\d)"
)
_ID_NUMBER = re.compile(r"[1-9]\d{16}[\dXx]")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_PROVINCES = {11, 12, 13, 14, 15, 21, 22, 23, 31, 32, 33, 34, 35, 36, 37, 41, 42, 43, 44, 45, 46, 50, 51, 52, 53, 54, 61, 62, 63, 64, 65, 71, 81, 82, 83, 91}


def redact(text: str) -> tuple[str, dict[str, int]]:
    """Replace what is found by a placeholder; return the new text and counts by kind."""
    spans = find(text)
    if not spans:
        return text, {}
    counts: dict[str, int] = {}
    parts, at = [], 0
    for start, end, kind in spans:
        parts += [text[at:start], PLACEHOLDERS[kind]]
        counts[kind] = counts.get(kind, 0) + 1
        at = end
    return "".join([*parts, text[at:]]), counts


def find(text: str) -> list[tuple[int, int, str]]:
    """Return `(start, end, kind)` of all personal data, in order and without overlaps (the first kind found wins)."""
    finders = []
    if "@" in text:
        finders.append(_emails)
    if _HAS_NUMBERS.search(text):
        finders += [_ipv4, _numbers]
    if ":" in text:
        finders.append(_ipv6)
    taken: list[tuple[int, int, str]] = []
    for finder in finders:
        for start, end, kind in finder(text):
            if all(end <= s or start >= e for s, e, _ in taken):
                taken.append((start, end, kind))
    return sorted(taken)


_HAS_NUMBERS = re.compile(r"\d{7}|\d\.\d{1,3}\.\d|\d[ )\u2010-\u2013.-]{1,2}\d{2}")


def _emails(text: str) -> Iterator[tuple[int, int, str]]:
    for pattern in (_EMAIL, _EMAIL_AFTER_SCHEME):
        for m in pattern.finditer(text):
            if m[1].lower() not in _NOT_TLD and ".." not in m[0] and not m[0].startswith("git@"):
                yield m.start(), m.end(), "email"


def _ipv4(text: str) -> Iterator[tuple[int, int, str]]:
    for m in _IPV4.finditer(text):
        parts = m[0].split(".")
        if any(int(p) > 255 or (len(p) > 1 and p[0] == "0") for p in parts):
            continue
        if ipaddress.IPv4Address(m[0]).is_global and _is_address(text, m.start(), m.end(), [int(p) for p in parts], m[0]):
            yield m.start(), m.end(), "ip"


def _is_address(text: str, start: int, end: int, octets: list[int], written: str) -> bool:
    """Tell an address from a version or a section number by its size and by the words before it."""
    before = text[max(start - _CONTEXT_CHARS, 0) : start]
    if _VERSION_CONTEXT.search(before):
        return False
    if written in _RESOLVERS or text[max(start - 3, 0) : start] == "://" or re.match(r"(?:/\d{1,2}|:\d{2,5})\b", text[end : end + 6]):
        return True
    if _IP_CONTEXT.search(before.rpartition("\n")[2]):
        return True
    line_start = not before or before.endswith("\n") or not before.rpartition("\n")[2].strip()
    if line_start and re.match(r"[.)]?[ \t]+[A-Z\u4e00-\u9fff]", text[end : end + 4]) and max(octets) < 100:
        return False  # "4.1.2.3 Title"
    return max(octets) >= 100 and sum(o >= 20 for o in octets) >= 2


def _ipv6(text: str) -> Iterator[tuple[int, int, str]]:
    for m in _IPV6.finditer(text):
        written = m[0].rstrip(":") if m[0].endswith(":") and not m[0].endswith("::") else m[0]
        try:
            address = ipaddress.IPv6Address(written)
        except ValueError:
            continue
        if address.is_global and ("::" in written or written.count(":") == 7):
            yield m.start(), m.start() + len(written), "ip"


def _numbers(text: str) -> Iterator[tuple[int, int, str]]:
    for pattern in (_NUMBER, _NUMBER_AFTER_SCHEME):
        for m in pattern.finditer(text):
            yield from map(partial(_shift, m.start()), _classify(m[0]))


def _shift(offset: int, found: tuple[int, int, str]) -> tuple[int, int, str]:
    return found[0] + offset, found[1] + offset, found[2]


def _classify(written: str) -> Iterator[tuple[int, int, str]]:
    """Say what a run of digits and separators is. Several numbers with a space between them are looked at one by one."""
    if kind := _kind_of(written):
        yield 0, len(written), kind
        return
    at = 0
    for part in re.split(r"( +)", written):
        if part.strip() and part != written and (kind := _kind_of(part)):
            yield at, at + len(part), kind
        at += len(part)


def _kind_of(written: str) -> str | None:
    digits = re.sub(r"[^\dXx+]", "", written)
    if _ID_NUMBER.fullmatch(written) and valid_id_number(written):
        return "id_number"
    if _CN_MOBILE.fullmatch(digits) and _grouped_like_mobile(written):
        return "phone"
    if _CN_LANDLINE.fullmatch(written) or _NANP.fullmatch(written):
        return "phone"
    if digits.startswith("+") or (digits.startswith("00") and re.search(r"[ ()-]", written)):
        number = digits.removeprefix("+").removeprefix("00")
        if number.isdigit() and 9 <= len(number) <= 15 and _CALLING_CODES.match(number):
            return "phone"
    return None


def _grouped_like_mobile(written: str) -> bool:
    """Accept 13812345678, 138-1234-5678, 138 1234 5678, each with +86, 86 or 0086 before it; not 1.3812345678 or 1 381 23…"""
    return re.fullmatch(r"(?:(?:\+ ?|00)?86[- ]?|\((?:\+|00)?86\) ?)?1\d{2}(?:\d{8}|-\d{4}-\d{4}| \d{4} \d{4})", written) is not None


def valid_id_number(written: str) -> bool:
    """Check a Chinese resident ID number (GB 11643-1999): province, birth date, check digit (ISO 7064, mod 11-2)."""
    if int(written[:2]) not in _ID_PROVINCES:
        return False
    try:
        born = date(int(written[6:10]), int(written[10:12]), int(written[12:14]))
    except ValueError:
        return False
    if not 1880 <= born.year <= 2100:
        return False
    total = sum(int(d) * w for d, w in zip(written[:17], _ID_WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == written[17].upper()
