"""Keys, tokens, private keys and passwords that were left in text or code.

    list(find_secrets('aws_key = "AKIAIOSFODNN7ABCDEFG"'))  ->  [(11, 31, "secret")]

Keys with a prefix of their own are known by it; anything else must be assigned to a name such as `api_key` or `password`
and look random: manuals are full of `password = "secret"`, which is nobody's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int, str]

_E = r"(?![A-Za-z0-9_-])"
_B = r"(?<![A-Za-z0-9_])"
_PREFIXED: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (markers, re.compile(pattern, re.ASCII))
    for markers, pattern in (
        (("AKIA", "ASIA"), rf"{_B}A(?:KIA|SIA)[A-Z2-7]{{16}}{_E}"),
        (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), rf"{_B}gh[pousr]_[A-Za-z0-9]{{36,255}}{_E}"),
        (("github_pat_",), rf"{_B}github_pat_[A-Za-z0-9_]{{22,255}}{_E}"),
        (("glpat-",), rf"{_B}glpat-[A-Za-z0-9_-]{{20,64}}{_E}"),
        (("xox",), rf"{_B}xox[abeoprs]-[A-Za-z0-9-]{{10,250}}{_E}"),
        (("hooks.slack.com",), r"(?<=hooks\.slack\.com/services/)T[A-Za-z0-9]{6,12}/B[A-Za-z0-9]{6,12}/[A-Za-z0-9]{20,32}"),
        (("AIza",), rf"{_B}AIza[A-Za-z0-9_-]{{35}}{_E}"),
        (("GOCSPX-",), rf"{_B}GOCSPX-[A-Za-z0-9_-]{{28}}{_E}"),
        (("ya29.",), rf"{_B}ya29\.[A-Za-z0-9_-]{{30,400}}{_E}"),
        (("sk-",), rf"{_B}sk-(?:proj-|ant-(?:api\d\d-)?|svcacct-|or-v1-)?[A-Za-z0-9_-]{{20,200}}{_E}"),
        (("k_live_", "k_test_"), rf"{_B}[rs]k_(?:live|test)_[A-Za-z0-9]{{16,128}}{_E}"),
        (("hf_",), rf"{_B}hf_[A-Za-z0-9]{{30,40}}{_E}"),
        (("npm_",), rf"{_B}npm_[A-Za-z0-9]{{36}}{_E}"),
        (("pypi-AgE",), rf"{_B}pypi-AgE[A-Za-z0-9_-]{{50,400}}{_E}"),
        (("LTAI",), rf"{_B}LTAI[A-Za-z0-9]{{12,20}}{_E}"),  # Alibaba Cloud
        (("AKID",), rf"{_B}AKID[A-Za-z0-9]{{32}}{_E}"),  # Tencent Cloud
        (("eyJ",), rf"{_B}eyJ[A-Za-z0-9_-]{{8,2000}}\.eyJ[A-Za-z0-9_-]{{8,4000}}\.[A-Za-z0-9_-]{{16,1000}}{_E}"),
    )
)

_PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----")
_PEM_MIN_CHARS = 100
"""Base64 between the marks; manuals show the marks with dots in between."""

_URL_LOGIN = re.compile(r"(?<=://)([^\s/:@\"'<>\\|]{1,64}):([^\s/:@\"'<>\\|]{1,128})(?=@[A-Za-z0-9])")
_NAMES = ("key", "secret", "token", "passw", "pwd", "密码", "口令", "密钥")
_KEY_OF = re.compile(r"(?:api|secret|auth|access|session|private|encryption|account|signing|master)[_-]?\Z", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?:ord|d)?(?:[_-]?(?:key|id|token|value|base64))?[\"']?\s{0,3}(?:=>|:=|[=:：])\s{0,3}(?:[\"']([^\"'\s]{8,256})[\"']|([A-Za-z0-9+/_.~-]{20,256}={0,2})(?=[\s,;]|\Z))", re.IGNORECASE)
_BEARER = re.compile(r"(?<=[Bb]earer )[A-Za-z0-9_.~+/-]{24,500}={0,2}(?=[\s\"',;]|\Z)")
_PLACEHOLDER = re.compile(r"example|sample|dummy|change|your|placeholder|secret|passw|token|redacted|x{4}|\*{3}|\.{3}|1234|abcd|<|>|\$|\{|%s|%\(|test|foo|bar\b|^(?:pw|pass|pwd|user|login)$|[\u4e00-\u9fff]", re.IGNORECASE)
_PLAIN_PASSWORD = re.compile(r"^(?:x+|p+a*s+w*o*r*d*\d*|pwd?|secret|token|key|port|y+)$", re.IGNORECASE)
_MIN_BITS = 3.0
"""Shannon entropy by character. Random hex has 3.3 or more at 16 characters, base64 4; English words joined have 2.5 to 3.5,
so letters and digits both are asked for."""


def find_secrets(text: str) -> Iterator[Span]:
    """Yield keys, tokens, private keys, passwords."""
    for markers, pattern in _PREFIXED:
        if any(marker in text for marker in markers):
            for m in pattern.finditer(text):
                if _is_real(m[0]):
                    yield m.start(), m.end(), "secret"
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if "://" in text and "@" in text:
        for m in _URL_LOGIN.finditer(text):
            if not _PLAIN_PASSWORD.match(m[2]) and not _PLACEHOLDER.search(m[2]):
                yield m.start(), m.end(), "secret"
    lower = text.lower() if len(text.lower()) == len(text) else text
    for name in _NAMES:
        at = lower.find(name)
        while at >= 0:
            after = at + len(name)
            if (m := _ASSIGNED.match(text, after)) and (name != "key" or _KEY_OF.search(text, max(at - 12, 0), at)):
                group = 1 if m[1] is not None else 2
                if looks_random(m[group], bits=_MIN_BITS if group == 1 else _MIN_BITS + 0.5):
                    yield *m.span(group), "secret"
            at = lower.find(name, after)
    if "earer " in text:
        for m in _BEARER.finditer(text):
            if looks_random(m[0], bits=_MIN_BITS + 0.5):
                yield m.start(), m.end(), "secret"


def _private_keys(text: str) -> Iterator[Span]:
    at = 0
    while begin := _PEM_BEGIN.search(text, at):
        end = _PEM_END.search(text, begin.end())
        if end is None:
            return
        last = begin  # the mark nearest to the end, should several stand before it
        while (another := _PEM_BEGIN.search(text, last.end(), end.start())) is not None:
            last = another
        body = re.sub(r"[^A-Za-z0-9+/=]", "", text[last.end() : end.start()])
        if len(body) >= _PEM_MIN_CHARS:
            yield last.start(), end.end(), "secret"
        at = end.end()


def _is_real(key: str) -> bool:
    """Leave out what documentation makes up: EXAMPLE in it, the same letter over and over, words joined by hyphens."""
    tail = key[4:]
    if re.search(r"example|xxxx|your|\*\*|0000000|1234567890abcdef", key, re.IGNORECASE) or len(set(tail)) < 8:
        return False
    return any(c.isdigit() for c in tail) or sum(c.isupper() for c in tail) >= 3


def looks_random(value: str, *, bits: float = _MIN_BITS) -> bool:
    """Whether a value has letters and digits in no order: entropy by character, no word of a placeholder in it."""
    if len(value) < 8 or _PLACEHOLDER.search(value) or not any(c.isdigit() for c in value) or not any(c.isalpha() for c in value):
        return False
    if value.startswith(("/", "./", "~/", "http")) or (value.count("/") > 2 and "." in value):
        return False  # a path
    if re.fullmatch(r"[A-Za-z]+[\d.]+|[\w-]+\.[a-z]{2,4}|v?\d+(?:\.\d+)+[\w.-]*|[a-z]+(?:[_.-][a-z]+\d?)+", value):
        return False  # Sha256, file.txt, 1.2.3-rc1, snake_case_2
    counts = Counter(value)
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in counts.values()) >= bits
