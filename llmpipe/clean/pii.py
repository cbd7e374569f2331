"""Find personal data and secrets in text: e-mail, public IP addresses, phone, ID and card numbers, accounts, keys.

    redact("mail a@b.org or 13812345678")  ->  ("mail <EMAIL> or <PHONE>", {"email": 1, "phone": 1})

Precision counts as much as recall, for each false hit damages good text: numbers must have a valid check digit, country
code or number range, and four small numbers with dots are an address only where the words before them say so; elsewhere
they are a version or a section. `scripts/bench/pii.py` measures both. Every finder takes time in proportion to the text,
and none runs on a text without the character or word that it needs.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache

from llmpipe.clean.pii_numbers import find_accounts, find_numbers, has_numbers, valid_id_number
from llmpipe.clean.pii_secrets import find_secrets

__all__ = ["KINDS", "PLACEHOLDERS", "find", "redact", "valid_id_number"]

Span = tuple[int, int, str]

PLACEHOLDERS = {
    "secret": "<SECRET>",
    "email": "<EMAIL>",
    "ip": "<IP>",
    "id_number": "<ID_NUMBER>",
    "bank_card": "<BANK_CARD>",
    "phone": "<PHONE>",
    "account": "<ACCOUNT>",
}
KINDS = tuple(PLACEHOLDERS)
"""`id_number`: Chinese ID cards, passports and US social security numbers; `account`: WeChat and QQ; `secret`: keys, tokens,
passwords in URLs."""


def redact(text: str, kinds: Collection[str] = KINDS) -> tuple[str, dict[str, int]]:
    """Replace what is found by a placeholder; return the new text and counts by kind."""
    spans = find(text, kinds)
    if not spans:
        return text, {}
    counts: dict[str, int] = {}
    parts, at = [], 0
    for start, end, kind in spans:
        parts += [text[at:start], PLACEHOLDERS[kind]]
        counts[kind] = counts.get(kind, 0) + 1
        at = end
    return "".join([*parts, text[at:]]), counts


def find(text: str, kinds: Collection[str] = KINDS) -> list[Span]:
    """Return `(start, end, kind)` of all personal data of these kinds, in order and without overlaps (the first finder wins)."""
    digit = _DIGIT.search(text) is not None
    digits = digit and has_numbers(text)
    finders: list[Callable[[str], Iterator[Span]]] = []
    if "secret" in kinds and (digit or "@" in text):  # random keys hold a digit; passwords in URLs stand before an @
        finders.append(find_secrets)
    if "email" in kinds and ("@" in text or _spells_at(text)):
        finders.append(_emails)
    if "ip" in kinds and digits:
        finders.append(_ipv4)
    if "ip" in kinds and ":" in text:
        finders.append(_ipv6)
    if digits and not {"id_number", "bank_card", "phone"}.isdisjoint(kinds):
        finders.append(find_numbers)
    if "account" in kinds or "id_number" in kinds:
        finders.append(find_accounts)
    found = [span for finder in finders for span in finder(text) if span[2] in kinds]
    if len(found) < 2:
        return found
    taken = bytearray(len(text))
    kept = []
    for span in found:
        start, end, _ = span
        if taken.find(1, start, end) < 0:
            taken[start:end] = b"\1" * (end - start)
            kept.append(span)
    return sorted(kept)


_DIGIT = re.compile(r"[0-9]")

# --- e-mail --------------------------------------------------------------------------------------------------------

_SPELLED_AT = ("[at]", "(at)", "[ at ]", "( at )", "[AT]", "(AT)", "{at}", "<at>", "[@]", "(@)", "（at）", "【at】", "艾特")
_AT = re.compile(r"[\[({（【<]\s?(?:at|AT|艾特)\s?[\])}）】>]")
_AT = re.compile(r"(?<=[A-Za-z0-9_+-])@(?=[A-Za-z0-9])", re.ASCII)
_LOCAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?\Z|[A-Za-z0-9]\Z", re.ASCII)
_LOCAL_CHARS = re.compile(r"[A-Za-z0-9._%+'-]*", re.ASCII)
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24}|xn--[a-z0-9-]{2,40})(?![A-Za-z0-9_@-]|\.[A-Za-z0-9])", re.ASCII)
_SPELLED = re.compile(
    r"(?<![\w.+%/:@-])([A-Za-z0-9][A-Za-z0-9._%+-]{0,62})\s?[\[({（【<]\s?(?:at|AT|@|艾特)\s?[\])}）】>]\s?"
    r"((?:[A-Za-z0-9-]{1,63}(?:\.|\s?[\[({（【<]\s?(?:dot|DOT|点)\s?[\])}）】>]\s?|\s(?:dot|DOT)\s)){1,5}([A-Za-z]{2,24}))(?![\w@-]|\.\w)",
    re.ASCII,
)
_NOT_TLD = {"py", "zip", "mov", "md"}
"""Top-level domains that are file endings far more often."""
_NOT_PEOPLE = {"git", "hg", "svn"}
MAX_LOCAL = 64


def _emails(text: str) -> Iterator[Span]:
    """Start from each @ and look to both sides, so that a megabyte of letters or of @ costs no more than its length."""
    for m in _AT.finditer(text):
        domain = _DOMAIN.match(text, m.end())
        if domain is None or not _is_tld(domain[1]):
            continue
        chars = _LOCAL_CHARS.match(text[max(m.start() - MAX_LOCAL - 1, 0) : m.start()][::-1])[0][::-1]
        if len(chars) > MAX_LOCAL:
            continue
        local = chars.lstrip("._%+'-")
        start = m.start() - len(local)
        before = text[start - 1 : start]
        if before and (before in "/:.@\\" or (before.isalnum() and before.isascii())) and text[max(start - 7, 0) : start].lower() != "mailto:":
            continue  # user:password@host, /path@2x.png
        if local and _LOCAL.match(local) and ".." not in local and local not in _NOT_PEOPLE:
            yield start, domain.end(), "email"
    if _spells_at(text):
        for m in _SPELLED.finditer(text):
            if _is_tld(m[3]):
                yield m.start(), m.end(), "email"


def _spells_at(text: str) -> bool:
    return any(mark in text for mark in "[({<（【") and any(sign in text for sign in _SPELLED_AT)


@lru_cache(4096)
def _is_tld(label: str) -> bool:
    """Whether a label is a top-level domain of the public list: getty@tty1.service and icon@2x.png are no mailboxes."""
    import tld

    label = label.lower()
    return (label not in _NOT_TLD and tld.get_fld(f"http://a.{label}/", fail_silently=True) is not None) or label == "test"


# --- IP addresses --------------------------------------------------------------------------------------------------

_FOUR = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")  # opens with a class: three times as fast as _IPV4
_SIX = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]")
_IPV4 = re.compile(r"(?<![\w.:/@+-])(?:(?<!\d)\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d|\.[A-Za-z])|(?<=://)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)|(?<=@)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_IP_CONTEXT = re.compile(r"\b(?:ips?|ipv4|address(?:es)?|addr|hosts?|hostname|server|dns|resolver|nameserver|ping|client|peer|gateway|login|ssh|telnet|from|connect(?:ed|ion)?|subnet|network|remote|https?|inet)\b|地址|服务器|伺服器|主机|主機|网关|網關|登录|登錄", re.IGNORECASE)
_VERSION_CONTEXT = re.compile(r"(?:\b(?:versions?|ver|v|release[ds]?|rev(?:ision)?|build|update|upgrade[ds]?|firmware|driver|patch|sections?|chapters?|clause|figure|table|appendix|paragraph|article|rfc|oid|part|step)\.?|固件|驱动(?:程序)?|內核|内核|发行版|版本?|版本号|第|章|节|節|条|條|§)[\s:=#(]*$", re.IGNORECASE)
_RESOLVERS = {"1.1.1.1", "8.8.8.8", "8.8.4.4", "9.9.9.9"}
_CONTEXT_CHARS = 40

_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)", re.ASCII)

_IPV6_PREFIX = re.compile(r"/(?:[1-9]|[1-5]\d|6[0-4])\b")  # a network, not a host


def _ipv4(text: str) -> Iterator[Span]:
    if not _FOUR.search(text):
        return
    for m in _IPV4.finditer(text):
        parts = m[0].split(".")
        if any(int(p) > 255 or (len(p) > 1 and p[0] == "0") for p in parts):
            continue
        if ipaddress.IPv4Address(m[0]).is_global and _is_address(text, m.start(), m.end(), [int(p) for p in parts], m[0]):
            yield m.start(), m.end(), "ip"


def _is_address(text: str, start: int, end: int, octets: list[int], written: str) -> bool:
    """Tell an address from a version or a section number by its size and by the words before it."""
    if octets[0] == 0 or octets[0] >= 224 or octets[3] == 0:
        return False  # a mask, a group, a network: no host
    before = text[max(start - _CONTEXT_CHARS, 0) : start]
    if _VERSION_CONTEXT.search(before):
        return False
    if written in _RESOLVERS or text[max(start - 3, 0) : start] == "://" or re.match(r"(?:/(?:8|1[6-9]|2\d|3[0-2])|:\d{2,5})\b", text[end : end + 6]):
        return True
    if _IP_CONTEXT.search(before.rpartition("\n")[2]):
        return True
    line_start = not before or before.endswith("\n") or not before.rpartition("\n")[2].strip()
    if line_start and re.match(r"[.)]?[ \t]+[A-Z\u4e00-\u9fff]", text[end : end + 4]) and max(octets) < 100:
        return False  # "4.1.2.3 Title"
    return max(octets) >= 100 and sum(o >= 20 for o in octets) >= 2


def _ipv6(text: str) -> Iterator[Span]:
    if not _SIX.search(text):
        return
    for m in _IPV6.finditer(text):
        written = m[0].rstrip(":") if m[0].endswith(":") and not m[0].endswith("::") else m[0]
        try:
            address = ipaddress.IPv6Address(written)
        except ValueError:
            continue
        groups = sum(map(bool, written.split(":")))
        if address.is_global and groups >= 3 and (groups == 8 or "::" in written) and not _IPV6_PREFIX.match(text, m.start() + len(written)):
            yield m.start(), m.start() + len(written), "ip"
