"""The crawl's loop: decide what is fetched next, take in what comes back, commit.

    Scheduler(settings, frontier=..., fetchers=..., extractors=..., robots=..., scope=..., archive=...).run(report)

One thread owns the frontier. Fetches run in threads, extraction in processes; this loop sleeps until one of them has
something, and hands it to visits.py. Each hop of a redirect is a URL of its own, with its own scope, robots and address
checks. Where depth is limited, a level is finished before the next begins: a page's depth then doesn't depend on which
fetch was faster.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from llmpipe.crawl.extract import ExtractPool
from llmpipe.crawl.fetch import Fetched, Target
from llmpipe.crawl.frontier import Entry, Frontier, NewUrl
from llmpipe.crawl.manners import Barred, Host, RobotsBook, Wait
from llmpipe.crawl.optout import NOTHING
from llmpipe.crawl.pages import Archive
from llmpipe.crawl.policies import PolicyBook
from llmpipe.crawl.robots import Rules
from llmpipe.crawl.threads import FetchThreads
from llmpipe.crawl.urls import Scope, origin, resolve, template
from llmpipe.crawl.visits import DAY_S, HOUR_S, SAME_TEXTS, Settings, Visits, template_key

COMMIT_S = 0.5
COMMIT_PAGES = 50
REPORT_S = 0.2
REFILL = 100
"""URLs of a host held in memory."""
MAX_HOSTS = 1_000
"""Hosts with a queue in memory."""
MAX_EXTRACTING = 100
"""Pages fetched and waiting for extraction: what a kill costs again, and memory."""
ANY_DEPTH = 1 << 30


@dataclass(slots=True)
class Ticket:
    """A fetch in flight: of a URL, or of an origin's robots.txt or `policy`."""

    host: Host
    entry: Entry | None = None
    origin: str = ""
    policy: str = ""
    crawl_delay_s: float = 0.0


@dataclass(slots=True)
class Progress:
    """What the loop reports."""

    pages: int = 0
    """Of the visit round."""
    queue: int = 0
    hosts: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """By class, since the start."""
    rate: float = 0.0
    """Pages a second since the start."""


@dataclass(slots=True)
class Scheduler:
    settings: Settings
    frontier: Frontier
    fetchers: FetchThreads
    extractors: ExtractPool
    robots: RobotsBook
    scope: Scope
    archive: Archive
    output: Path
    policies: PolicyBook | None = None
    """What sites say of AI; None: not asked."""
    level: int = ANY_DEPTH
    visits: Visits = field(init=False)
    _committed_at: float = 0.0
    _reported_at: float = 0.0
    _hosts: dict[int, Host] = field(default_factory=dict)
    _heap: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.visits = Visits(self.settings, self.frontier, self.scope, self.archive, self.extractors, self.policies, self.wake)

    def run(self, report: Callable[[Progress], None]) -> None:
        """Crawl until nothing is left to do in this round or `max_pages` is reached."""
        start = self._committed_at = time.monotonic()
        self.visits.load()
        before = self.visits.pages
        self._set_level()
        self._activate()
        while True:
            for ticket, fetched in self.fetchers.finished():
                self._on_fetched(ticket, fetched)
            for page in self.extractors.poll(0):
                self._queue(self.visits.on_extracted(page))
            self._launch()
            now = time.monotonic()
            if self.visits.uncommitted >= COMMIT_PAGES or now - self._committed_at >= COMMIT_S:
                self._commit()
                self._activate()
            if self.frontier.full:
                self._commit()
                self.frontier.seal(self.output)
            if now - self._reported_at >= REPORT_S:
                busy = sum(h.active > 0 for h in self._hosts.values())
                report(Progress(self.visits.pages, self.visits.queue_size, busy, dict(self.visits.errors), (self.visits.pages - before) / max(now - start, 1e-3)))
                self._reported_at = now
            idle = not self.fetchers.pending and not self.visits.extracting
            if idle and (self._is_full() or not self._more_work()):
                break
            self._sleep()
        self._commit()
        report(Progress(self.visits.pages, self.visits.queue_size, 0, dict(self.visits.errors), (self.visits.pages - before) / max(time.monotonic() - start, 1e-3)))
        self.frontier.seal(self.output)

    def _is_full(self) -> bool:
        return self.settings.max_pages is not None and self.visits.pages >= self.settings.max_pages

    def _more_work(self) -> bool:
        """Look for hosts with work; called when nothing is in flight."""
        if self._heap:
            return True
        self._set_level()
        self._activate()
        return bool(self._heap) or self.frontier.next_wake() is not None

    def _set_level(self) -> None:
        """Where depth is limited, go on to the least depth that has work. What is in flight still counts as work."""
        if self.settings.max_depth is not None:
            self.level = ANY_DEPTH if (least := self.frontier.shallowest()) is None else least

    def _sleep(self) -> None:
        """Wait for a result, or until a host may be asked again, or a commit is due."""
        timeout = COMMIT_S
        if self._heap and self._has_room():
            timeout = min(timeout, self._heap[0][0] - time.time())
        self.fetchers.fetcher.expire()
        # an idle worker's pipe may be readable (it says that it is ready) and would end every sleep at once
        wait([self.fetchers.wake, *(self.extractors.connections if self.extractors.pending else ())], max(timeout, 0.0))

    def _commit(self) -> None:
        self.archive.save(self.frontier)
        self.frontier.commit()
        self.visits.uncommitted, self._committed_at = 0, time.monotonic()

    # --- what is fetched next ---------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        backlog = self.extractors.is_full or self.extractors.pending >= MAX_EXTRACTING
        return self.fetchers.pending < 2 * self.settings.num_threads and not backlog and not self._spent()

    def _spent(self) -> bool:
        """Whether the pages in flight may already fill the round."""
        limit = self.settings.max_pages
        return limit is not None and self.visits.pages + len(self.visits.in_flight) >= limit

    def _launch(self) -> None:
        now = time.time()
        while self._heap and self._heap[0][0] <= now and self._has_room():
            host = self._hosts[heapq.heappop(self._heap)[1]]
            host.queued = False
            if self._launch_from(host, now):
                self._queue(host)

    def _activate(self) -> None:
        """Bring hosts with work into memory, those too whose URLs waited for another try."""
        self.frontier.wake(time.time())
        room = MAX_HOSTS - len(self._hosts)
        for host_id in self.frontier.ready_hosts(self._hosts, room, self.level) if room > 0 else ():
            self._bring(host_id)
        for host in self._hosts.values():
            host.exhausted = False
            self._queue(host)

    def _bring(self, host_id: int) -> None:
        known = self.frontier.host(host_id, round_number=self.settings.round_number)
        self._hosts[host_id] = Host(host_id, known.name, known.next_at, known.round_pages, known.penalty_s, known.penalty_s)

    def _queue(self, host: Host) -> None:
        """Put a host in the heap if it may be asked: one request at a time, but for crawls without delay."""
        if not host.queued and not host.robots_pending and (host.active == 0 or self.settings.delay_s == 0):
            host.queued = True
            # one that asks for too long a pause comes up at once, to have its URLs dropped
            heapq.heappush(self._heap, (0.0 if self._too_long(host, time.time()) else host.next_at, host.id))

    def _too_long(self, host: Host, now: float) -> bool:
        return host.next_at > now + self.settings.max_wait_s

    def _launch_from(self, host: Host, now: float) -> bool:
        """Start the host's next fetch; return whether it may be asked for another."""
        if host.next_at > now and not self._too_long(host, now):
            return True
        while True:
            if not host.queue and not host.exhausted:
                found = self.frontier.take(host.id, REFILL, skip=host.loaded, max_depth=self.level)
                host.queue.extend(found)
                host.loaded.update(entry.id for entry in found)
                host.exhausted = len(found) < REFILL
            if not host.queue:
                self._retire(host)
                return False
            entry = host.queue[0]
            if (refusal := self._limit(host, entry)) is not None:
                host.queue.popleft()
                self.visits.drop(host, entry, *refusal, next_at=now + HOUR_S)
                if time.time() - now > COMMIT_S:  # thousands of refusals in a row must not starve the rest
                    return True
                continue
            if self._fills(host, entry):
                return False  # the end of what is in flight queues the host again
            verdict: Rules | Wait | Barred | None
            if self._too_long(host, now):
                verdict = Barred("retry_after", f"{host.next_at - now:.0f} s")
            else:
                verdict = self.robots.lookup(origin(entry.url), now)
            if verdict is None:
                if host.active:
                    return False  # its end queues the host again
                self._start_robots(host, origin(entry.url))
                return False
            if isinstance(verdict, Wait):
                if host.active:
                    return False
                host.next_at = max(host.next_at, verdict.until)
                return True
            refusal, about_ai = self._refusal(verdict, entry), NOTHING
            if refusal is None and entry.kind == "page" and self.policies is not None:
                if (kind := self.policies.missing(origin(entry.url), verdict, now)) is not None:
                    if not host.active:
                        self._start_policy(host, origin(entry.url), kind, verdict.crawl_delay_s or 0.0)
                    return False  # its end queues the host again
                about_ai = self.policies.of(entry.url, now).before(entry.url) if self.settings.honor_optouts else NOTHING
            host.queue.popleft()
            if refusal is not None or about_ai.optout:
                if refusal is not None:
                    self.visits.drop(host, entry, *refusal, next_at=now + (HOUR_S if isinstance(verdict, Barred) else DAY_S))
                else:
                    self.visits.opt_out(host, entry, about_ai, now, wait_s=DAY_S)
                if time.time() - now > COMMIT_S:
                    return True
                continue
            assert isinstance(verdict, Rules)  # the other kinds were dealt with
            delay = verdict.crawl_delay_s or 0.0
            if delay and host.active:
                host.queue.appendleft(entry)
                return False
            self._start(host, entry, delay)
            return True

    def _limit(self, host: Host, entry: Entry) -> tuple[str, Any, Any] | None:
        """Say which limit keeps a URL from being fetched now: its host's share, or a template that was closed since it was found."""
        if entry.kind != "page":
            return None
        most = self.settings.max_pages_per_host
        if most is not None and host.round_pages >= most:
            return "host_full", host.round_pages, most
        if self.visits.closed and entry.source == "link" and template_key(entry.url) in self.visits.closed:
            return "template_closed", template(entry.url), SAME_TEXTS
        return None

    def _refusal(self, verdict: Rules | Barred, entry: Entry) -> tuple[str, Any, Any] | None:
        """Say what in robots.txt, or for want of it, keeps a URL from being fetched."""
        if isinstance(verdict, Barred):
            return verdict.rule, verdict.value, None
        found = verdict.verdict(entry.url)
        if not found.allowed:
            return "robots", found.rule or "", None
        delay = verdict.crawl_delay_s or 0.0
        return ("crawl_delay", f"{delay:g} s", self.settings.max_wait_s) if delay > self.settings.max_wait_s else None

    def _fills(self, host: Host, entry: Entry) -> bool:
        """Whether the pages of a host that are in flight may already fill its share."""
        most = self.settings.max_pages_per_host
        return most is not None and entry.kind == "page" and host.round_pages + len(host.loaded) - len(host.queue) >= most

    def _start(self, host: Host, entry: Entry, crawl_delay_s: float) -> None:
        host.active += 1
        if entry.kind == "page":
            self.visits.in_flight.add(entry.id)
        conditional = entry.kind == "sitemap" or (entry.page and not self.visits.reserved(entry))
        validators = {"etag": entry.etag, "last_modified": entry.last_modified} if conditional else {}
        self.fetchers.submit(Ticket(host, entry, crawl_delay_s=crawl_delay_s), Target(url=entry.url, kind=entry.kind, **validators))

    def _start_robots(self, host: Host, site: str) -> None:
        host.active += 1
        host.robots_pending = True
        self.fetchers.submit(Ticket(host, origin=site), Target(url=f"{site}/robots.txt", kind="robots", **self.robots.validators(site)))

    def _start_policy(self, host: Host, site: str, kind: str, crawl_delay_s: float) -> None:
        assert self.policies is not None
        host.active += 1
        host.robots_pending = True
        self.fetchers.submit(Ticket(host, origin=site, policy=kind, crawl_delay_s=crawl_delay_s), self.policies.target(site, kind))

    def _retire(self, host: Host) -> None:
        """Drop a host without work from memory; one with pages in flight stays, since they may lead to more."""
        if not host.active and not host.loaded:
            self.frontier.save_host(host.id, host.next_at, host.penalty_s)
            del self._hosts[host.id]

    # --- what comes back --------------------------------------------------------------------------------------------

    def _on_fetched(self, ticket: Ticket, fetched: Fetched) -> None:
        host, entry, now = ticket.host, ticket.entry, time.time()
        host.active -= 1
        host.observe(fetched, delay_s=self.settings.delay_s, crawl_delay_s=ticket.crawl_delay_s, now=now)
        self.frontier.count("requests")
        self.frontier.count("bytes", len(fetched.body))
        if ticket.policy and self.policies is not None:
            host.robots_pending = False
            self.policies.record(ticket.origin, ticket.policy, fetched, now)
        elif entry is None:
            host.robots_pending = False
            sitemaps = self.robots.record(ticket.origin, fetched, now)
            if self.settings.sitemaps and self.settings.max_depth != 0:
                found = [u for s in sitemaps if (u := resolve(fetched.url, s)) is not None]
                self.visits.add([NewUrl(url, 0, "sitemap", "sitemap") for url in found])
                if not found and ticket.origin in self.visits.origins and isinstance(self.robots.lookup(ticket.origin, now), Rules):  # where it lies on most sites that don't say so
                    self.visits.add([NewUrl(f"{ticket.origin}/sitemap.xml", 0, "guess", "sitemap")])
        elif entry.kind == "sitemap":
            self.visits.on_sitemap(host, entry, fetched)
        elif fetched.location is not None:
            self.visits.on_redirect(host, entry, fetched)
        elif self.visits.try_later(host, entry, fetched):
            pass
        elif fetched.status == 304 and self.visits.objected_to(entry, fetched):
            self.visits.hear_out(host, entry, fetched)
        elif fetched.status == 304:
            self.visits.unchanged(host, entry, fetched)
        elif fetched.rule is not None:
            self.visits.failed(host, entry, fetched)
        else:
            self.visits.on_page(host, entry, fetched)
        self._queue(host)

    def wake(self, host_id: int) -> None:
        """Note that a host has something to fetch."""
        if host_id not in self._hosts and len(self._hosts) < MAX_HOSTS:
            self._bring(host_id)
        if (host := self._hosts.get(host_id)) is not None:
            host.exhausted = False
            self._queue(host)
