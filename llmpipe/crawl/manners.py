"""Keep the peace with hosts: what robots.txt of each origin says, and when a host may be asked again.

    book = RobotsBook(frontier, agent="llmpipe", max_tries=3, retry_s=5, max_wait_s=600)
    book.lookup("http://a.example", now) -> Rules | Wait | Barred | None          # None: fetch it first
    host = Host(1, "a.example"); host.observe(fetched, ...); host.next_at

Semantics of a robots.txt's status: RFC 9309, 2.3.1. Kept in the frontier for a day.
"""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import Literal

from llmpipe.crawl import robots
from llmpipe.crawl.fetch import Fetched
from llmpipe.crawl.frontier import Entry, Frontier, RobotsRecord
from llmpipe.crawl.robots import ALLOW_ALL, Rules

RobotsMode = Literal["honor", "strict", "ignore"]
FORBID_ALL = b"User-agent: *\nDisallow: /\n"
ROBOTS_LIFETIME_S = 86_400.0
MAX_COMPILED = 2_000
MAX_LATENCY_DELAY_S = 30.0
MAX_PENALTY_S = 300.0
LATENCY_FACTOR = 2.0
JITTER = 0.25
"""Delays are stretched by up to this share, so that hosts on one machine are not hit in step."""


@dataclass(frozen=True, slots=True)
class Wait:
    until: float


@dataclass(frozen=True, slots=True)
class Barred:
    """No URL of this origin can be fetched in this round."""

    rule: str
    value: str


class RobotsBook:
    def __init__(self, frontier: Frontier, *, agent: str, max_tries: int, retry_s: float, max_wait_s: float, mode: RobotsMode = "honor") -> None:
        self.frontier, self.agent, self.mode = frontier, agent, mode
        self.max_tries, self.retry_s, self.max_wait_s = max_tries, retry_s, max_wait_s
        self._compiled: OrderedDict[str, tuple[float, Rules]] = OrderedDict()
        self._barred: dict[str, Barred] = {}
        self._waits: dict[str, float] = {}

    def lookup(self, origin: str, now: float) -> Rules | Wait | Barred | None:
        if (found := self._compiled.get(origin)) is not None and now < found[0]:
            self._compiled.move_to_end(origin)
            return found[1]
        if (barred := self._barred.get(origin)) is not None:
            return barred
        if (until := self._waits.get(origin)) is not None:
            if now < until:
                return Wait(until)
            return None
        record = self.frontier.robots(origin)
        if record is None or now >= record.fetched_at + ROBOTS_LIFETIME_S or not 200 <= record.status < 500:
            return None
        return self._remember(origin, record)[0]

    def validators(self, origin: str) -> dict[str, str | None]:
        """What makes the next request for an origin's robots.txt conditional."""
        old = self.frontier.robots(origin)
        return {"etag": old.etag, "last_modified": old.last_modified} if old else {}

    def record(self, origin: str, fetched: Fetched, now: float) -> list[str]:
        """Take in a fetched robots.txt; return the sitemaps that it names."""
        old = self.frontier.robots(origin)
        status = fetched.status
        if status == 304 and old is not None:
            self._waits.pop(origin, None)
            self.frontier.save_robots(origin, new := replace(old, fetched_at=now, tries=0))
            return self._remember(origin, new)[1]
        if fetched.location is not None or 300 <= status < 400:
            status = 404  # more than five redirects: unavailable, so nothing is forbidden
        cut = fetched.truncated is not None and len(fetched.body) <= robots.MAX_BYTES  # by the network: what it forbids may be what is missing
        if 200 <= status < 300 and fetched.rule in (None, "http_204") and not cut:
            new = RobotsRecord(status, fetched.body, now, etag=fetched.header("etag"), last_modified=fetched.header("last-modified"))
        elif 400 <= status < 500 and status != 429:
            new = RobotsRecord(status, FORBID_ALL if self.mode == "strict" and status in (401, 403) else b"", now)
        elif self.mode == "ignore":
            new = RobotsRecord(404, b"", now)
        else:
            return self._unreachable(origin, fetched, old, now)
        self._waits.pop(origin, None)
        self.frontier.save_robots(origin, new)
        return self._remember(origin, new)[1]

    def _unreachable(self, origin: str, fetched: Fetched, old: RobotsRecord | None, now: float) -> list[str]:
        """5xx, 429 and no answer at all forbid everything (RFC 9309, 2.3.1.4), but for an earlier copy."""
        if old is not None and 200 <= old.status < 500:
            self._compiled[origin] = (now + 3600.0, self._rules(robots.parse(old.body)))
            return []
        tries = (old.tries if old else 0) + 1
        self.frontier.save_robots(origin, RobotsRecord(0, b"", now, tries))
        if not fetched.retry and fetched.rule in ("dns", "private_address", "tls"):
            self._barred[origin] = Barred(fetched.rule, fetched.value)
        elif tries >= self.max_tries or (fetched.retry_after_s or 0.0) > self.max_wait_s:
            why = fetched.truncated if fetched.rule is None else f"{fetched.rule}: {fetched.value}"
            self._barred[origin] = Barred("robots_unreachable", why or "")
        else:
            self._waits[origin] = now + max(self.retry_s * 2 ** (tries - 1), fetched.retry_after_s or 0.0)
        return []

    def _remember(self, origin: str, record: RobotsRecord) -> tuple[Rules, list[str]]:
        parsed = robots.parse(record.body)
        rules = self._rules(parsed)
        self._compiled[origin] = (record.fetched_at + ROBOTS_LIFETIME_S, rules)
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return rules, parsed.sitemaps

    def _rules(self, parsed: robots.Robots) -> Rules:
        rules = parsed.rules(self.agent) or ALLOW_ALL
        return Rules((), rules.crawl_delay_s) if self.mode == "ignore" else rules


@dataclass(slots=True)
class Host:
    """A host with work: what of its queue is in memory, and when it may be asked again."""

    id: int
    name: str
    next_at: float = 0.0
    """Unix time."""
    round_pages: int = 0
    """Pages that this visit round has of it."""
    penalty_s: float = 0.0
    """Added to its delay: doubles with each sign of trouble, shrinks by a tenth of its peak with each success."""
    peak_s: float = 0.0
    queue: deque[Entry] = field(default_factory=deque)
    loaded: set[int] = field(default_factory=set)
    """URLs in `queue`, being fetched or being extracted: `READY` in the frontier, but taken."""
    active: int = 0
    """Requests in flight."""
    queued: bool = False
    """Whether it stands in the heap."""
    robots_pending: bool = False
    exhausted: bool = False
    """Whether the frontier had no more for it when last asked."""

    def observe(self, fetched: Fetched, *, delay_s: float, crawl_delay_s: float, now: float) -> None:
        """Set `next_at` from the configured delay, robots.txt, the answer's latency, errors and Retry-After.

        `delay_s` 0 turns adaptation off; Crawl-delay and Retry-After stay.
        """
        delay = max(delay_s, crawl_delay_s)
        if delay_s > 0:
            if fetched.status in (429, 503) or fetched.rule in ("timeout", "connect"):
                self.penalty_s = self.peak_s = min(max(2 * self.penalty_s, delay_s, 1.0), MAX_PENALTY_S)
            elif self.penalty_s:
                self.penalty_s = max(0.0, self.penalty_s - self.peak_s / 10)
            delay = max(delay, min(LATENCY_FACTOR * fetched.seconds, MAX_LATENCY_DELAY_S)) + self.penalty_s
        if delay:
            delay *= 1 + JITTER * random.random()
        self.next_at = max(self.next_at, now + delay)
        if fetched.retry_after_s is not None and fetched.status in (429, 503):
            self.next_at = max(self.next_at, now + fetched.retry_after_s)
