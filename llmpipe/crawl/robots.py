"""Read robots.txt as RFC 9309 says, and answer whether an agent may fetch a URL.

    robots = parse(body)
    robots.rules("llmpipe").verdict("http://a.example/private/x")      # Verdict(allowed=False, rule="Disallow: /private/")
    robots.rules("GPTBot", wildcard=False)                             # None: no group names it

Where the RFC and Google's parser differ on the escapes of unreserved characters, the stricter reading wins.
Nothing here raises, whatever the bytes. Pure functions, no input or output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmpipe.crawl.urls import decode_target, request_target

MAX_BYTES = 500 * 1024
MAX_LINE_BYTES = 16_664
"""Longer lines are cut here, as Google does (8 times the longest URL)."""
MAX_CRAWL_DELAY_S = 86_400.0
MAX_SITEMAPS = 100
MAX_STATEMENTS = 1_000
MAX_LICENSES = 10

_TOKEN = re.compile(r"[A-Za-z_-]+")
_LINE = re.compile(rb"\r\n|\r|\n")
_KEYS = {
    "user-agent": "agent",
    "useragent": "agent",
    "user agent": "agent",
    "allow": "allow",
    "disallow": "disallow",
    "dissallow": "disallow",
    "dissalow": "disallow",
    "disalow": "disallow",
    "diasllow": "disallow",
    "disallaw": "disallow",
    "crawl-delay": "delay",
    "crawldelay": "delay",
    "sitemap": "sitemap",
    "site-map": "sitemap",
    "content-signal": "Content-Signal",
    "content-usage": "Content-Usage",
    "license": "license",
}
"""The spellings that webmasters use and Google reads."""


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    rule: str | None = None
    """The line that decided; None where none matched."""


@dataclass(frozen=True, slots=True)
class Rule:
    allow: bool
    line: str
    length: int
    """Of the pattern in bytes: the longest match wins."""
    parts: tuple[str, ...]
    """The pattern cut at `*`."""
    anchored: bool
    decoded: tuple[str, ...]
    """`parts` with the escapes of unreserved characters undone."""

    def matches(self, target: str, decoded: str) -> bool:
        if _matches(self.parts, self.anchored, target):
            return True
        # The RFC undoes %62 in rules, Google doesn't. Only a prohibition is read both ways.
        return not self.allow and _matches(self.decoded, self.anchored, decoded)


def _matches(parts: tuple[str, ...], anchored: bool, target: str) -> bool:
    """Match a pattern cut at `*` against the start of `target`, or all of it: leftmost pieces first, so in linear time."""
    first = parts[0]
    if not target.startswith(first):
        return False
    if len(parts) == 1:
        return not anchored or len(target) == len(first)
    position = len(first)
    for part in parts[1:-1]:
        found = target.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    last = parts[-1]
    if anchored:
        return len(target) - len(last) >= position and target.endswith(last)
    return target.find(last, position) >= 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What applies to one agent: the rules of all groups that name it, or of those for `*`."""

    rules: tuple[Rule, ...]
    """Longest first, Allow before Disallow at the same length: the first match decides."""
    crawl_delay_s: float | None = None

    def verdict(self, url: str) -> Verdict:
        target, decoded = targets(url)
        if target == "/robots.txt":
            return Verdict(True)
        for rule in self.rules:
            if rule.matches(target, decoded):
                return Verdict(rule.allow, rule.line)
        return Verdict(True)


ALLOW_ALL = Rules(())


@dataclass(frozen=True, slots=True)
class Statement:
    """A line about the use of pages, not about fetching them: Content-Signal (Cloudflare) or Content-Usage (IETF AIPREF)."""

    key: str
    rule: Rule
    """The paths that it speaks of; all where it names none."""
    value: str
    line: str


@dataclass(slots=True)
class _Group:
    agents: list[str] = field(default_factory=list)
    """Product tokens in lower case, or `*`."""
    rules: list[Rule] = field(default_factory=list)


@dataclass(slots=True)
class _Lot:
    """Statements, and whom they speak to. Not a group: AIPREF lets a statement end the list of agents, RFC 9309 does not know it.

    So Disallow and Content-Usage are each read as their own specification has it.
    """

    agents: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


@dataclass(slots=True)
class Robots:
    groups: list[_Group] = field(default_factory=list)
    delays: dict[str, float] = field(default_factory=dict)
    """Seconds by agent. Kept apart from groups: a group of Crawl-delay alone must not lend its agents the next group's rules."""
    sitemaps: list[str] = field(default_factory=list)
    lots: list[_Lot] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    """What the `License` lines of RSL point to."""

    def agents(self) -> set[str]:
        """Return the tokens that groups name."""
        return {agent for g in self.groups for agent in g.agents}

    def statements_for(self, agent: str) -> list[Statement]:
        """Return the lines about use that speak to `agent`, a token in lower case or `*`; what stands before all groups speaks to `*`."""
        return [s for lot in self.lots if agent in lot.agents for s in lot.statements]

    def rules(self, agent: str, *, wildcard: bool = True) -> Rules | None:
        """Return what applies to `agent`; without `wildcard` only groups that name it count, and None says there is none."""
        token = product_token(agent)
        names = [token] if any(token in g.agents for g in self.groups) or token in self.delays else ["*"]
        if names == ["*"] and not wildcard:
            return None
        rules = [r for g in self.groups if names[0] in g.agents for r in g.rules]
        rules.sort(key=lambda r: (-r.length, not r.allow))
        return Rules(tuple(rules), self.delays.get(names[0]))


def product_token(agent: str) -> str:
    """Reduce `llmpipe/0.1 (+https://…)` to what groups are named by: `llmpipe`."""
    match = _TOKEN.match(agent.strip())
    return match[0].lower() if match else ""


def parse(body: bytes) -> Robots:
    """Parse the first 500 KiB of a robots.txt; a last line cut by that limit is dropped."""
    if len(body) > MAX_BYTES:
        body = body[:MAX_BYTES]
        cut = max(body.rfind(b"\n"), body.rfind(b"\r"))
        body = body[: cut + 1]
    for mark in (b"\xef\xbb\xbf", b"\xef\xbb", b"\xef"):
        if body.startswith(mark):
            body = body[len(mark) :]
            break
    robots, group, in_rules = Robots(), _Group(), False
    lot, in_lot, num_statements = _Lot(["*"]), True, 0
    for raw in _LINE.split(body):
        key, value = _key_value(raw[:MAX_LINE_BYTES])
        if key == "agent":
            if in_rules:
                group, in_rules = _Group(), False
            if not group.agents:
                robots.groups.append(group)
            group.agents.append(_agent(value))
            if in_lot:
                lot, in_lot = _Lot(), False
            lot.agents.append(group.agents[-1])
        elif key in ("allow", "disallow"):
            in_rules = in_lot = True
            if value and group.agents:
                group.rules.extend(_rules(key == "allow", value))
        elif key == "delay":
            for agent in group.agents if (seconds := _seconds(value)) is not None else ():
                robots.delays.setdefault(agent, seconds)
        elif key == "sitemap" and value and len(robots.sitemaps) < MAX_SITEMAPS:
            robots.sitemaps.append(value)
        elif key in ("Content-Signal", "Content-Usage") and value and num_statements < MAX_STATEMENTS:
            in_lot, num_statements = True, num_statements + 1
            if not lot.statements:
                robots.lots.append(lot)
            lot.statements.append(_statement(key, value))
        elif key == "license" and value and len(robots.licenses) < MAX_LICENSES:
            robots.licenses.append(printable(value))
    return robots


def _key_value(raw: bytes) -> tuple[str | None, str]:
    """Split a line at the colon, or, as Google does, at the only blank of a line that lacks one."""
    line = raw.split(b"#", 1)[0].replace(b"\0", b"").decode("utf-8", "surrogateescape").strip()
    if not line:
        return None, ""
    name, colon, value = line.partition(":")
    if not colon:
        words = line.split()
        if len(words) != 2:
            return None, ""
        name, value = words
    return _KEYS.get(name.strip().lower()), value.strip()


def _agent(value: str) -> str:
    if value == "*" or (value.startswith("*") and value[1:2].isspace()):
        return "*"
    match = _TOKEN.match(value)
    return match[0].lower() if match else ""


def _statement(key: str, value: str) -> Statement:
    path, *rest = value.split(None, 1) if value.startswith("/") else ("/", value)
    return Statement(key, compile_rule(path), rest[0] if rest else "", f"{key}: {printable(value)}")


def targets(url: str) -> tuple[str, str]:
    """Return what patterns are matched against: path and query as written, and with the escapes of unreserved characters undone."""
    target = _upper_escapes(request_target(url))
    return target, decode_target(target) if "%" in target else target


def compile_rule(pattern: str, *, allow: bool = False) -> Rule:
    """Compile a path pattern of robots.txt, with `*` and `$`, that stands elsewhere."""
    return _rule(allow, _upper_escapes(_escape(pattern)), pattern)


def printable(text: str) -> str:
    """Make text of a file or header fit for a report: bytes that are no UTF-8 become `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _rules(allow: bool, value: str) -> list[Rule]:
    """Compile a path pattern. An allowed `/dir/index.html` also allows `/dir/`, as Google has it."""
    pattern = _upper_escapes(_escape(value))
    rules = [_rule(allow, pattern, value)]
    if allow and (at := pattern.rfind("/index.htm")) >= 0 and pattern.rfind("/") == at:
        rules.append(_rule(allow, pattern[: at + 1] + "$", value))
    return rules


def _rule(allow: bool, pattern: str, value: str) -> Rule:
    anchored = pattern.endswith("$")
    body = pattern[:-1] if anchored else pattern
    parts = tuple(re.sub(r"\*+", "*", body).split("*"))
    line = f"{'Allow' if allow else 'Disallow'}: {printable(value)}"
    return Rule(allow, line, len(pattern), parts, anchored, tuple(decode_target(p) for p in parts))


def _escape(text: str) -> str:
    """Percent-encode what is not ASCII, byte for byte as it stood in the file."""
    if text.isascii():
        return text
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape")) for c in text)


def _upper_escapes(text: str) -> str:
    return re.sub(r"%[0-9a-fA-F]{2}", lambda m: m[0].upper(), text) if "%" in text else text


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return min(seconds, MAX_CRAWL_DELAY_S) if seconds >= 0 else None


_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def tag_directives(headers: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield `(agent, directive)` of X-Robots-Tag headers, in lower case; agent is empty where they speak to everybody."""
    for name, value in headers:
        if name.lower() != "x-robots-tag":
            continue
        agent = ""
        for part in value.lower().split(","):
            head, colon, rest = part.strip().partition(":")
            if colon and head.strip() not in _WITH_VALUE:
                agent, part = head.strip(), rest
            if part.strip():
                yield agent, part.strip()


def page_directives(headers: list[tuple[str, str]], meta: list[tuple[str, tuple[str, ...]]], agent: str) -> frozenset[str]:
    """Collect what X-Robots-Tag headers and meta robots say to every agent or to `agent` by name: `noindex`, `nofollow`, …"""
    token = product_token(agent)
    found = {directive for name, directive in tag_directives(headers) if name in ("", token)}
    for name, directives in meta:
        if name in ("robots", token):
            found.update(directives)
    if "none" in found:
        found |= {"noindex", "nofollow"}
    return frozenset(found - {""})
