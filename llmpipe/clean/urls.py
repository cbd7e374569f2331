"""Drop documents by their URL: block lists of domains, addresses and patterns, and words in the URL.

    blocker = load_urls(UrlLists(block=[Path("blocked.txt")]))
    blocker.reason("http://www.sub.example.org/a")  ->  ("urls.domain", "example.org", "listed")

A list has one entry a line: `example.org` (that domain and all below it), `example.org/path` or a whole URL (that address
and all that begin with it), `re:…` (a regular expression searched in the URL); `#` opens a comment. Gzip and zstd are
read too. Lists enter the fingerprint by their content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from llmpipe.clean.word_lists import URL_BANNED, URL_DOMAINS, URL_SOFT
from llmpipe.errors import InputError

MAX_URL_CHARS = 4_096
_WORDS = re.compile(r"[a-z]+|[\u4e00-\u9fff]+")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlLists:
    block: list[Path] = field(default_factory=list)
    """Files with one domain, address or `re:` pattern a line."""
    allow: list[Path] = field(default_factory=list)
    """The same form; what matches here is kept whatever else says."""
    builtin: bool = True
    """The short list of domains and words that llmpipe brings along (pornography, gambling)."""
    banned_words: list[str] = field(default_factory=list)
    """Further words of which one is enough."""
    soft_words: list[str] = field(default_factory=list)
    """Further words that count as soft."""
    max_soft_words: int = 1
    """Drop a URL with more different soft words than this."""


@dataclass(frozen=True, slots=True)
class Entries:
    """A list made ready to look up."""

    domains: frozenset[str]
    prefixes: frozenset[str]
    pattern: re.Pattern[str] | None

    def match(self, host: str, address: str, url: str) -> tuple[str, str] | None:
        """Return which kind of entry matches, and what it says."""
        labels = host.split(".")
        for i in range(len(labels)):
            if (domain := ".".join(labels[i:])) in self.domains:
                return "domain", domain
        if self.prefixes:
            for m in re.finditer(r"[/?#&]|$", address):
                for cut in (address[: m.start()], address[: m.end()]):
                    if cut in self.prefixes:
                        return "address", cut
        if self.pattern is not None and (m := self.pattern.search(url)):
            return "pattern", m[0][:100]
        return None


@dataclass(frozen=True, slots=True)
class UrlBlocker:
    """Judges one URL at a time: some set look-ups, whatever the length of the lists."""

    blocked: Entries
    allowed: Entries
    banned: frozenset[str]
    soft: frozenset[str]
    max_soft_words: int

    def reason(self, url: str | None) -> tuple[str, str, object] | None:
        """Return rule, value and threshold of what drops a URL; None keeps it (so does having no URL)."""
        if not url:
            return None
        url = url[:MAX_URL_CHARS]
        host, address = parse(url)
        if self.allowed.match(host, address, url):
            return None
        if found := self.blocked.match(host, address, url):
            return f"urls.{found[0]}", found[1], "listed"
        words = set(_WORDS.findall(unquote(url).lower()))
        if banned := sorted(words & self.banned):
            return "urls.banned_word", banned[0], "listed"
        soft = sorted(words & self.soft)
        return ("urls.soft_words", ",".join(soft), self.max_soft_words) if len(soft) > self.max_soft_words else None


def load_urls(lists: UrlLists) -> UrlBlocker:
    """Read the lists; raise `InputError` that names the file and line of a pattern that is none."""
    builtin = lists.builtin
    return UrlBlocker(
        blocked=_entries(lists.block, URL_DOMAINS if builtin else ()),
        allowed=_entries(lists.allow, ()),
        banned=frozenset([*(URL_BANNED if builtin else ()), *(w.lower() for w in lists.banned_words)]),
        soft=frozenset([*(URL_SOFT if builtin else ()), *(w.lower() for w in lists.soft_words)]),
        max_soft_words=lists.max_soft_words,
    )


def parse(url: str) -> tuple[str, str]:
    """Return host and address (host with path and query) in the form that lists are compared in: no scheme, www., port or user."""
    rest = url.strip()
    rest = rest[m.end() :] if (m := _SCHEME.match(rest.lower())) else rest
    cut = re.search(r"[/?#\\]|$", rest).start()
    host, tail = rest[:cut].rpartition("@")[2].lower(), rest[cut:]
    host = host if host.endswith("]") else re.sub(r":\d*\Z", "", host)
    host = host.rstrip(".").removeprefix("www.")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            pass
    return host, host + (tail if tail != "/" else "")


def read_list(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a list that say something."""
    try:
        text = pa.input_stream(str(path), compression="detect").read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of lines ({error})", hint="a list is UTF-8 text, one entry a line") from None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip() if line.startswith("re:") else re.sub(r"(?:^|\s)#.*", "", line).strip()
        if line:
            yield number, line


def _entries(paths: list[Path], domains: tuple[str, ...] | list[str]) -> Entries:
    hosts, prefixes, patterns = set(domains), set(), []
    for path in paths:
        for number, line in read_list(path):
            if line.startswith("re:"):
                try:
                    re.compile(line[3:])
                except re.error as error:
                    raise InputError(f"{path}: line {number}: {line[3:]!r} is not a regular expression ({error})") from None
                patterns.append(f"(?:{line[3:]})")
                continue
            if " " in line:  # the form of hosts files: 0.0.0.0 example.org
                line = line.split()[-1]
            host, address = parse(line)
            if address == host:
                hosts.add(host.removeprefix("*.").removeprefix("."))
            else:
                prefixes.add(address.rstrip("*"))
    return Entries(frozenset(hosts), frozenset(prefixes), re.compile("|".join(patterns)) if patterns else None)
