"""Say what a link points to, whether two URLs are the same page, whether a crawl may go there, and what smells of a trap.

    resolve("http://a.example/b/c", "../d?q=1#top")    # "http://a.example/d?q=1": what is fetched
    canonical(url)                                     # the page's identity, never fetched
    Scope("host", seeds).allows(url)                   # trap(url): the rule that refuses it, or None

The fetched URL stays as the site wrote it, in ASCII; only the key is normalised. Pure functions, no input or output.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Literal
from urllib.parse import quote_from_bytes, urljoin, urlsplit

import idna

MAX_URL_CHARS = 2_000
MAX_PATH_SEGMENTS = 20
MAX_SEGMENT_RUN = 2
MAX_SEGMENT_REPEATS = 3
FIRST_YEAR, YEARS_AHEAD = 1000, 2
"""Dates in URLs outside these are pages that a calendar makes up as it is asked."""

ScopeKind = Literal["host", "domain", "prefix"]
_PORTS = {"http": 80, "https": 443}
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_TRACKING = re.compile(r"(utm_\w+|gclid|dclid|fbclid|msclkid|yclid|spm|mc_eid|_hs(enc|mi))", re.I)
_SESSION_KEY = re.compile(r"(jsessionid|phpsessid|aspsessionid\w*|sid)", re.I)
_SESSION_VALUE = re.compile(r"[0-9a-z.!_-]{16,}", re.I)
_SESSION_PATH = re.compile(r";(jsessionid|phpsessid)=[^/?#;]*", re.I)
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_VARIABLE = re.compile(r"[0-9a-f]{16,}|\d+", re.I)
_DATED_PATH = re.compile(r"/(\d{4})[/-](0?[1-9]|1[0-2])(?=[/.-]|$)")
_DATE_KEY = re.compile(r"(?:.*[_.\-\[]|\w*)?(year|month|date)\]?", re.I)
_DATE_WORD = re.compile(r"year|month|date", re.I)
_GROWING = re.compile(r"%25(?:25){2,}|(?:amp(?:;|%3B)){3,}", re.I)
_CONTROL = dict.fromkeys([*range(0x20), 0x7F])
_PATH_SAFE = b"%/:@!$&'()*+,;=-._~[]|^"
_QUERY_SAFE = _PATH_SAFE + b"?{}`\\"


def resolve(base: str, href: str, *, encoding: str = "utf-8") -> str | None:
    """Make the absolute http(s) URL of a link, without fragment and credentials; None for what cannot be fetched.

    `encoding` is the page's: a browser writes other characters of a query in it (WHATWG URL), of a path in UTF-8.
    """
    href = href.strip(" \t\r\n\f\v\u00a0\u3000").translate(_CONTROL)
    try:
        parts = urlsplit(urljoin(base, href.replace("\\", "/") if "\\" in href.partition("?")[0] else href))
        scheme = parts.scheme.lower()
        if scheme not in _PORTS or not parts.hostname:
            return None
        host = _ascii_host(parts.hostname)
        port = parts.port
    except ValueError:
        return None
    if host is None or port == 0:
        return None
    netloc = host if port is None or port == _PORTS[scheme] else f"{host}:{port}"
    path = _remove_dots(_quote(parts.path, "utf-8", _PATH_SAFE)) or "/"
    query = _quote(parts.query.replace("&amp;", "&"), encoding, _QUERY_SAFE) if parts.query else ""
    return f"{scheme}://{netloc}{path}{'?' + query if query else ''}"


def _quote(text: str, encoding: str, safe: bytes) -> str:
    if text.isascii() and not _needs_quoting(text):
        return text
    try:
        data = text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        data = text.encode("utf-8", "replace")
    return quote_from_bytes(data, safe)


_needs_quoting = re.compile(r"[^A-Za-z0-9%/:@!$&'()*+,;=\-._~\[\]|^?{}`\\]").search


@lru_cache(maxsize=10_000)
def _ascii_host(host: str) -> str | None:
    """Spell a host in ASCII: IDNA (UTS 46), IPv6 in brackets, no trailing dot; None where it is no host."""
    host = host.rstrip(".").lower()
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError:
            return None
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    return host if 0 < len(host) <= 253 and re.fullmatch(r"[a-z0-9._-]+", host) and ".." not in host else None


def _remove_dots(path: str) -> str:
    """Remove `.` and `..` segments (RFC 3986, 5.2.4), which urljoin leaves in absolute URLs."""
    if "/." not in path:
        return path
    out: list[str] = []
    segments = path.split("/")
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if segment == "." or segment.lower() == "%2e":
            if last:
                out.append("")
        elif segment == "..":
            if len(out) > 1:
                out.pop()
            if last:
                out.append("")
        else:
            out.append(segment)
    return "/".join(out)


# --- identity ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=20_000)
def canonical(url: str) -> str:
    """Reduce an absolute URL to its identity: trackers, session ids and spelling differences of escapes removed.

    Keeps the order of the query, empty values, undecodable escapes (`%D6%D0` of a GBK query) and trailing slashes.
    """
    parts = urlsplit(url)
    host = _ascii_host(parts.hostname or "") or (parts.hostname or "")
    netloc = host if parts.port in (None, _PORTS.get(parts.scheme)) else f"{host}:{parts.port}"
    path = _SESSION_PATH.sub("", parts.path) if ";" in parts.path else parts.path
    path = _remove_dots(_normal_escapes(path)) or "/"
    query = parts.query
    if query:
        kept = [item for item in query.split("&") if not _is_noise(item)]
        query = _normal_escapes("&".join(kept))
    return f"{parts.scheme}://{netloc}{path}{'?' + query if query else ''}"


def _is_noise(item: str) -> bool:
    name, _, value = item.partition("=")
    return bool(_TRACKING.fullmatch(name) or (_SESSION_KEY.fullmatch(name) and _SESSION_VALUE.fullmatch(value)))


def _normal_escapes(text: str) -> str:
    if not text.isascii():
        text = quote_from_bytes(text.encode("utf-8", "replace"), _QUERY_SAFE)
    return _ESCAPE.sub(_escape, text) if "%" in text else text


def _escape(match: re.Match[str]) -> str:
    byte = int(match[1], 16)
    return chr(byte) if byte in _UNRESERVED else f"%{byte:02X}"


def origin(url: str) -> str:
    """Return scheme, host and port: what one robots.txt speaks for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_name(url: str) -> str:
    """Return the host and an unusual port: what one delay is kept for, and what scope `host` means."""
    return urlsplit(url).netloc


@lru_cache(maxsize=10_000)
def registered_domain(host: str) -> str:
    """Return the domain that someone registered (`a.b.co.uk` -> `b.co.uk`), or the host where there is none."""
    import tld

    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return tld.get_fld(f"http://{name}/", fail_silently=True) or host


# --- scope and traps -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scope:
    """Where a crawl may go, told by its seeds: their hosts, their registered domains, or below their folders."""

    kind: ScopeKind
    roots: set[str] = field(default_factory=set)
    include: re.Pattern[str] | None = None
    """What a URL must hold, beside that."""
    exclude: re.Pattern[str] | None = None

    @classmethod
    def of(cls, kind: ScopeKind, urls: Iterable[str], *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Scope:
        """Build a scope; `re.error` for a pattern that is none."""
        scope = cls(kind, include=any_of(include), exclude=any_of(exclude))
        for url in urls:
            scope.add(url)
        return scope

    def add(self, url: str) -> None:
        self.roots.add(self._root(url))

    def _root(self, url: str) -> str:
        parts = urlsplit(url)
        if self.kind == "domain":
            return registered_domain(parts.netloc)
        return parts.netloc if self.kind == "host" else parts.netloc + parts.path[: parts.path.rfind("/") + 1]

    def allows(self, url: str) -> bool:
        if (self.include and not self.include.search(url)) or (self.exclude and self.exclude.search(url)):
            return False
        parts = urlsplit(url)
        if self.kind == "host":
            return parts.netloc in self.roots
        if self.kind == "domain":
            return registered_domain(parts.netloc) in self.roots
        place = parts.netloc + parts.path
        return any(place.startswith(root) for root in self.roots)


def any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Join regular expressions; each is checked alone, so that an error names it."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
    return re.compile("|".join(f"(?:{p})" for p in patterns)) if patterns else None


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` crawls that share the hosts of the world among them by a hash of the host's name."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `0/4`; a ValueError says what is wrong."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"shard: {text!r} is not i/n with i from 0 to n - 1, such as 0/4, 1/4, 2/4, 3/4")
        return cls(int(match[1]), int(match[2]))

    def holds(self, host: str) -> bool:
        return self.of(host) == self.index

    def of(self, host: str) -> int:
        return int.from_bytes(hashlib.blake2b(host.encode(), digest_size=8).digest()) % self.count


def template(url: str) -> str | None:
    """Reduce a URL to what it shares with its like: numbers become 0, the values of its query go. None: nothing to reduce."""
    parts = urlsplit(url)
    path = _VARIABLE.sub("0", parts.path)
    if path == parts.path and not parts.query and "0" not in path:
        return None
    names = "&".join(dict.fromkeys(_VARIABLE.sub("0", item.partition("=")[0]) for item in parts.query.split("&"))) if parts.query else ""
    return f"{parts.netloc}{path}?{names}"


def trap(url: str) -> tuple[str, str, int] | None:
    """Return (rule, value, limit) when a URL looks endless: too long, too deep, growing, in circles, or a calendar's far end."""
    if len(url) > MAX_URL_CHARS:
        return "url_too_long", str(len(url)), MAX_URL_CHARS
    if "%25" in url or "amp" in url:
        if (found := _GROWING.search(url)) is not None:
            return "escapes_grow", found[0], 2
    parts = urlsplit(url)
    if (date := _impossible_date(parts.path, parts.query)) is not None:
        return "calendar", date, _last_year()
    segments = [s for s in parts.path.split("/") if s]
    if len(segments) > MAX_PATH_SEGMENTS:
        return "path_too_deep", str(len(segments)), MAX_PATH_SEGMENTS
    if len(segments) <= MAX_SEGMENT_RUN:
        return None
    run = 1
    for before, segment in pairwise(segments):
        run = run + 1 if segment == before else 1
        if run > MAX_SEGMENT_RUN:
            return "path_repeats", segment, MAX_SEGMENT_RUN
    if len(segments) > MAX_SEGMENT_REPEATS:
        for segment in set(segments):
            if segments.count(segment) > MAX_SEGMENT_REPEATS:
                return "path_repeats", segment, MAX_SEGMENT_REPEATS
    return None


def _last_year() -> int:
    return time.gmtime().tm_year + YEARS_AHEAD


def _impossible_date(path: str, query: str) -> str | None:
    """Find a year that no archive reaches, or a thirteenth month, in the path or the query."""
    for match in _DATED_PATH.finditer(path):
        if not FIRST_YEAR <= int(match[1]) <= _last_year():
            return match[0]
    for item in query.split("&") if _DATE_WORD.search(query) else ():
        name, _, value = item.partition("=")
        match = _DATE_KEY.fullmatch(name)
        number = re.match(r"\d{1,12}", value) if match else None
        if match is None or number is None:
            continue
        if match[1].lower() == "month" and len(number[0]) <= 3:
            fine = int(number[0]) <= 12
        elif match[1].lower() == "year" or re.match(r"\d{4}(-|/|%2F|\d{2}(\d{2})?$|$)", value):
            fine = FIRST_YEAR <= int(number[0][:4]) <= _last_year() if len(number[0]) in (4, 6, 8) else len(number[0]) <= 2
        else:
            fine = True  # seconds since 1970, say
        if not fine:
            return item
    return None


def parse_seed(text: str) -> str | None:
    """Read a URL as a person types it (`example.org/docs` means https); None for what is none."""
    text = text.strip()
    if "://" not in text:
        text = f"https://{text}"
    return resolve(text, text)


def request_target(url: str) -> str:
    """Return path and query: what robots.txt rules are matched against."""
    parts = urlsplit(url)
    return (parts.path or "/") + ("?" + parts.query if parts.query else "")


def decode_target(target: str) -> str:
    """Undo the escapes of unreserved characters, write the others in capitals (RFC 9309, 2.2.2)."""
    return _normal_escapes(target)
