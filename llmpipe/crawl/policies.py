"""Keep what each origin says about training AI: fetch /ai.txt and /.well-known/tdmrep.json once a day, judge URLs by them and robots.txt.

    book = PolicyBook(frontier, agent="llmpipe", ai_agents=AI_AGENTS)
    while (kind := book.missing(origin, rules, now)) is not None: book.record(origin, kind, fetch(book.target(origin, kind)), now)
    book.of(url, now).before(url)                                  # a Verdict of optout.py

A file that isn't there, fails or is something else says nothing; it bars nobody. Kept in the frontier, with validators.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from llmpipe.crawl.fetch import Fetched, Target
from llmpipe.crawl.frontier import Frontier, RobotsRecord
from llmpipe.crawl.optout import SitePolicy, site_policy
from llmpipe.crawl.robots import Rules
from llmpipe.crawl.urls import origin as origin_of

PATHS = {"ai.txt": "/ai.txt", "tdmrep.json": "/.well-known/tdmrep.json"}
LIFETIME_S = 86_400.0
RETRY_S = 3_600.0
"""After a failure that may pass, an earlier copy stays in force and is asked for again so much later."""
MAX_COMPILED = 2_000
MIN_COMPILED_S = 60.0


class PolicyBook:
    def __init__(self, frontier: Frontier, *, agent: str, ai_agents: Sequence[str]) -> None:
        self.frontier, self.agent, self.ai_agents = frontier, agent, tuple(ai_agents)
        self._compiled: OrderedDict[str, tuple[float, SitePolicy]] = OrderedDict()

    def missing(self, origin: str, rules: Rules, now: float) -> str | None:
        """Name the file that is to be fetched before the origin's pages; those that robots.txt keeps from us are not."""
        if (found := self._compiled.get(origin)) is not None and now < found[0]:
            return None
        for kind, path in PATHS.items():
            record = self.frontier.policy(origin, kind)
            if (record is None or now >= record.fetched_at + LIFETIME_S) and rules.verdict(origin + path).allowed:
                return kind
        return None

    def target(self, origin: str, kind: str) -> Target:
        old = self.frontier.policy(origin, kind)
        return Target(url=origin + PATHS[kind], kind="policy", etag=old.etag if old else None, last_modified=old.last_modified if old else None)

    def record(self, origin: str, kind: str, fetched: Fetched, now: float) -> None:
        """Take in a fetched file."""
        old = self.frontier.policy(origin, kind)
        if fetched.status == 304 and old is not None:
            new = replace(old, fetched_at=now)
        elif fetched.status == 200 and fetched.rule is None:
            new = RobotsRecord(200, fetched.body, now, etag=fetched.header("etag"), last_modified=fetched.header("last-modified"))
        elif fetched.retry and old is not None and old.status == 200:
            new = replace(old, fetched_at=now - LIFETIME_S + RETRY_S)
        else:
            new = RobotsRecord(0 if fetched.retry else fetched.status, b"", now)
        self.frontier.save_policy(origin, kind, new)
        self._compiled.pop(origin, None)

    def of(self, url: str, now: float) -> SitePolicy:
        """Return what the origin of a URL says, as far as it was fetched."""
        origin = origin_of(url)
        if (found := self._compiled.get(origin)) is not None and now < found[0]:
            self._compiled.move_to_end(origin)
            return found[1]
        records = [self.frontier.robots(origin), *(self.frontier.policy(origin, kind) for kind in PATHS)]
        policy = site_policy(*(r.body if r is not None else b"" for r in records), agent=self.agent, ai_agents=self.ai_agents)
        until = min((r.fetched_at for r in records if r is not None), default=now) + LIFETIME_S
        self._compiled[origin] = (max(until, now + MIN_COMPILED_S), policy)
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return policy
