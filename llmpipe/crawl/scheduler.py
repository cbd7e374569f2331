"""The crawl's loop: decide what is fetched next, take in what comes back, commit.

    Scheduler(settings, frontier=..., fetchers=..., extractors=..., robots=..., scope=..., archive=...).run(report)

One thread owns the frontier. Fetches run in threads, extraction in processes; this loop sleeps until one of them has
something. Each hop of a redirect is a URL of its own, with its own scope, robots and address checks. Where depth is
limited, a level is finished before the next begins: a page's depth then doesn't depend on which fetch was faster.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from llmpipe.crawl.extract import Extracted, ExtractPool
from llmpipe.crawl.fetch import MAX_HOPS, Fetched, Target
from llmpipe.crawl.frontier import MAX_INTERVAL_S, Entry, Frontier, NewUrl, url_key
from llmpipe.crawl.manners import Barred, Host, RobotsBook, Wait
from llmpipe.crawl.optout import NOTHING, Verdict
from llmpipe.crawl.pages import Archive, page_row
from llmpipe.crawl.policies import PolicyBook
from llmpipe.crawl.robots import Rules, page_directives
from llmpipe.crawl.threads import FetchThreads
from llmpipe.crawl.urls import Scope, Shard, canonical, host_name, origin, registered_domain, resolve, template, trap
from llmpipe.data.docs import content_hash

COMMIT_S = 0.5
COMMIT_PAGES = 50
REPORT_S = 0.2
REFILL = 100
"""URLs of a host held in memory."""
MAX_HOSTS = 1_000
"""Hosts with a queue in memory."""
MAX_EXTRACTING = 100
"""Pages fetched and waiting for extraction: what a kill costs again, and memory."""
MAX_OUTLINKS = 4_000
ANY_DEPTH = 1 << 30
HOUR_S, DAY_S = 3_600.0, 86_400.0
DEAD_END_S = 30 * DAY_S
"""Redirects, dead links and pages that must not be kept are looked at again after it: they may have changed their mind."""
UNCHANGED_FACTOR, CHANGED_FACTOR = 1.5, 0.8
GONE_AFTER = 2
"""404 or 410 in as many visits make a page `gone`."""
SAME_TEXTS = 20
"""As many pages of one text close their template: soft errors, session ids, calendars without entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the loop needs to know of the config."""

    user_agent: str
    delay_s: float
    num_threads: int
    max_tries: int
    retry_s: float
    max_pages: int | None
    max_depth: int | None
    max_pages_per_host: int | None
    max_per_template: int | None
    shard: Shard | None
    sitemaps: bool
    revisit_s: float
    """Seconds until a page is visited again, the first time; then it adapts."""
    max_wait_s: float
    """A host that asks for a longer pause is left for the next round."""
    round_number: int
    honor_optouts: bool = True
    """Leave out pages whose sites object to training AI on them; else they are kept, marked."""


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
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """The first few URLs that gave no page: (url, rule, value)."""
    level: int = ANY_DEPTH
    pages: int = 0
    queue_size: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    _origins: set[str] = field(default_factory=set)
    """Of the seeds."""
    _closed: set[int] = field(default_factory=set)
    """Templates of which nothing more is fetched."""
    _in_flight: set[int] = field(default_factory=set)
    """Pages being fetched or extracted."""
    _uncommitted: int = 0
    _committed_at: float = 0.0
    _reported_at: float = 0.0
    _hosts: dict[int, Host] = field(default_factory=dict)
    _heap: list[tuple[float, int]] = field(default_factory=list)
    _extracting: dict[str, tuple[Host, Entry, Fetched]] = field(default_factory=dict)

    def run(self, report: Callable[[Progress], None]) -> None:
        """Crawl until nothing is left to do in this round or `max_pages` is reached."""
        start, before = time.monotonic(), self.frontier.get("round_pages", 0)
        self.pages, self.queue_size, self._committed_at = before, self.frontier.pending(), start
        self._origins = {origin(url) for url in self.frontier.roots()}
        self._closed = self.frontier.closed_templates()
        self._set_level()
        self._activate()
        while True:
            for ticket, fetched in self.fetchers.finished():
                self._on_fetched(ticket, fetched)
            for page in self.extractors.poll(0):
                self._on_extracted(page)
            self._launch()
            now = time.monotonic()
            if self._uncommitted >= COMMIT_PAGES or now - self._committed_at >= COMMIT_S:
                self._commit()
                self._activate()
            if self.frontier.full:
                self._commit()
                self.frontier.seal(self.output)
            if now - self._reported_at >= REPORT_S:
                busy = sum(h.active > 0 for h in self._hosts.values())
                report(Progress(self.pages, self.queue_size, busy, dict(self.errors), (self.pages - before) / max(now - start, 1e-3)))
                self._reported_at = now
            idle = not self.fetchers.pending and not self._extracting
            if idle and (self._is_full() or not self._more_work()):
                break
            self._sleep()
        self._commit()
        report(Progress(self.pages, self.queue_size, 0, dict(self.errors), (self.pages - before) / max(time.monotonic() - start, 1e-3)))
        self.frontier.seal(self.output)

    def _is_full(self) -> bool:
        return self.settings.max_pages is not None and self.pages >= self.settings.max_pages

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
        self._uncommitted, self._committed_at = 0, time.monotonic()

    # --- what is fetched next ---------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        backlog = self.extractors.is_full or self.extractors.pending >= MAX_EXTRACTING
        return self.fetchers.pending < 2 * self.settings.num_threads and not backlog and not self._spent()

    def _spent(self) -> bool:
        """Whether the pages in flight may already fill the round."""
        limit = self.settings.max_pages
        return limit is not None and self.pages + len(self._in_flight) >= limit

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
                self._drop(host, entry, *refusal, next_at=now + HOUR_S)
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
                    self._drop(host, entry, *refusal, next_at=now + (HOUR_S if isinstance(verdict, Barred) else DAY_S))
                else:
                    self._opt_out(host, entry, about_ai, now, wait_s=DAY_S)
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
        if self._closed and entry.source == "link" and _template_key(entry.url) in self._closed:
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
            self._in_flight.add(entry.id)
        conditional = entry.kind == "sitemap" or (entry.page and not self._reserved(entry))
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
                self._add([NewUrl(url, 0, "sitemap", "sitemap") for url in found])
                if not found and ticket.origin in self._origins and isinstance(self.robots.lookup(ticket.origin, now), Rules):  # where it lies on most sites that don't say so
                    self._add([NewUrl(f"{ticket.origin}/sitemap.xml", 0, "guess", "sitemap")])
        elif entry.kind == "sitemap":
            self._on_sitemap(host, entry, fetched)
        elif fetched.location is not None:
            self._on_redirect(host, entry, fetched)
        elif self._try_later(host, entry, fetched):
            pass
        elif fetched.status == 304 and self._objected_to(entry, fetched):
            self._hear_out(host, entry, fetched)
        elif fetched.status == 304:
            self._unchanged(host, entry, fetched)
        elif fetched.rule is not None:
            self._failed(host, entry, fetched)
        else:
            self._on_page(host, entry, fetched)
        self._queue(host)

    def _try_later(self, host: Host, entry: Entry, fetched: Fetched) -> bool:
        """Put off what failed in a way that may pass, and once what arrived short."""
        patient = (fetched.retry_after_s or 0.0) <= self.settings.max_wait_s
        again = fetched.retry and patient and entry.tries + 1 < self.settings.max_tries
        if not again and not (fetched.truncated and entry.tries == 0 and self.settings.max_tries > 1):
            return False
        pause = self.settings.retry_s * 2**entry.tries * (1 + random.random() / 4)
        self.frontier.wait(entry.id, max(time.time() + pause, host.next_at if fetched.retry_after_s else 0.0))
        self.frontier.count("retries")
        self._release(host, entry)
        return True

    def _on_sitemap(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        if self._try_later(host, entry, fetched):
            return
        if fetched.rule is not None and fetched.location is None:
            self._failed(host, entry, fetched)
            return
        found, next_at = fetched.sitemap, fetched.at + self.settings.revisit_s
        if fetched.status == 304:
            self.frontier.count("unchanged")
            self._finish(host, entry, next_at=next_at)
            return
        if entry.hops < MAX_HOPS:
            further = [fetched.location] if fetched.location else found.children
            self._add([NewUrl(url, entry.depth, entry.source, "sitemap", entry.hops + 1) for url in further])
        source = "feed" if entry.source == "feed" else "sitemap"
        new = [NewUrl(url, entry.depth + 1, source, lastmod=found.lastmod.get(url)) for url in found.urls if self.scope.allows(url)]
        self._add(new)
        for url in new:
            if url.lastmod is not None and (due := self.frontier.note_lastmod(url.url, url.lastmod)) is not None:
                self.frontier.count("due_by_lastmod")
                self.queue_size += 1
                self._wake(due)
        self.frontier.count("sitemaps")
        self._finish(host, entry, next_at=next_at, interval_s=self.settings.revisit_s, **_validators(fetched))

    def _on_redirect(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        target = fetched.location
        assert target is not None
        if entry.source == "seed" and not self.scope.allows(target) and registered_domain(host_name(target)) == registered_domain(host_name(entry.url)):
            self.scope.add(target)  # example.org that moved to www.example.org is what was meant
            self.frontier.add_roots([target])
            self._origins.add(origin(target))
        chain = [*(entry.via or "").split(), entry.url]
        if canonical(target) in map(canonical, chain):
            refusal = ("redirect_loop", target, None)
        elif entry.hops >= MAX_HOPS:
            refusal = ("redirect_too_many", target, MAX_HOPS)
        elif not self.scope.allows(target):
            refusal = ("redirect_out_of_scope", target, self.scope.kind)
        elif (found := trap(target)) is not None:
            refusal = found
        else:
            source = "seed" if entry.source == "seed" else "redirect"
            self._add([NewUrl(target, entry.depth, source, hops=entry.hops + 1, via=" ".join(chain))])
            refusal = ("redirect", target, None)
        if entry.page:
            self._retract(entry, fetched.at)
        self._drop(host, entry, *refusal, partner=target if refusal[0] == "redirect" else None, next_at=fetched.at + DEAD_END_S, columns={"page": 0})

    def _failed(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        """A final failure of this visit. A page that an earlier visit had is `gone` after two 404s or 410s."""
        next_at = fetched.at + (DAY_S if entry.page or fetched.retry else DEAD_END_S)
        misses = entry.misses + 1 if fetched.status in (404, 410) else entry.misses
        if entry.page and fetched.status in (404, 410) and misses >= GONE_AFTER:
            self._retract(entry, fetched.at)
            self._drop(host, entry, fetched.rule or "", fetched.value, next_at=fetched.at + DEAD_END_S, columns={"page": 0, "misses": 0})
            return
        self._drop(host, entry, fetched.rule or "", fetched.value, next_at=next_at, columns={"misses": misses})

    def _retract(self, entry: Entry, at: float) -> None:
        """Take back the page that an earlier visit wrote."""
        self.frontier.spool("page", entry.id, {"id": entry.doc_id, "url": entry.url, "text": "", "op": "gone", "source": host_name(entry.url), "fetched_at": at})
        self.frontier.count("gone")

    def _unchanged(self, host: Host, entry: Entry, fetched: Fetched, **columns: Any) -> None:
        interval = min((entry.interval_s or self.settings.revisit_s) * UNCHANGED_FACTOR, MAX_INTERVAL_S)
        self.frontier.count("unchanged")
        self.frontier.judge_lastmod(entry, changed=False)
        self._finish(host, entry, next_at=fetched.at + interval, interval_s=interval, fetched_at=fetched.at, misses=0, **columns)

    def _on_page(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        if entry.page and entry.body_hash == _hash(fetched.body) and not self._objected_to(entry, fetched):
            self._unchanged(host, entry, fetched)
            return
        self._extracting[str(entry.id)] = (host, entry, fetched)
        self.extractors.submit(str(entry.id), fetched.body, fetched.url, fetched.header("content-type"), truncated=fetched.truncated is not None)

    def _on_extracted(self, page: Extracted) -> None:
        host, entry, fetched = self._extracting.pop(page.key)
        directives = page_directives(fetched.headers, page.meta_robots, self.settings.user_agent)
        if "nofollow" not in directives and not (self._closed and _template_key(entry.url) in self._closed):
            self._follow(entry, page)
        text_hash = content_hash(page.text)
        validators = {**_validators(fetched), "body_hash": _hash(fetched.body)}
        about_ai = self.policies.of(entry.url, fetched.at).verdict(entry.url, fetched.headers, page.meta_robots) if self.policies is not None else NOTHING
        if about_ai.optout and self.settings.honor_optouts:
            self._opt_out(host, entry, about_ai, fetched.at, wait_s=DEAD_END_S)
        elif "noindex" in directives:
            if entry.page:
                self._retract(entry, fetched.at)
            columns = {"page": 0, "misses": 0}
            self._drop(host, entry, "noindex", ", ".join(sorted(directives)), snippet=page.text, next_at=fetched.at + DEAD_END_S, columns=columns)
        elif entry.page and text_hash == entry.text_hash:
            self._unchanged(host, entry, fetched, **validators)
        else:
            place = self.archive.write(fetched)
            row = page_row(entry, fetched, page, host=host.name, raw=place, directives=directives, text_hash=text_hash, about_ai=about_ai)
            self.frontier.spool("page", entry.id, row)
            self.frontier.count("pages")
            self.pages += 1
            self.frontier.set("round_pages", self.pages)
            host.round_pages += 1
            self.frontier.count_page(host.id, round_number=self.settings.round_number)
            interval = self.settings.revisit_s
            if entry.page:
                interval = max((entry.interval_s or interval) * CHANGED_FACTOR, HOUR_S)
                self.frontier.judge_lastmod(entry, changed=True)
            if (key := _template_key(entry.url)) is not None and self.frontier.note_text(key, text_hash, limit=SAME_TEXTS):
                self._closed.add(key)
            next_at = fetched.at + interval
            self._finish(host, entry, next_at=next_at, interval_s=interval, page=1, misses=0, fetched_at=fetched.at, text_hash=text_hash, **validators)
        self._queue(host)

    def _reserved(self, entry: Entry) -> bool:
        """Whether the site's tdmrep.json reserves a page, so that the page must be read for a word to the contrary."""
        return self.policies is not None and self.settings.honor_optouts and self.policies.of(entry.url, time.time()).reserves(entry.url)

    def _objected_to(self, entry: Entry, fetched: Fetched) -> bool:
        """Whether site and headers object to training on a page, its own words not heard."""
        return self.policies is not None and self.settings.honor_optouts and self.policies.of(entry.url, fetched.at).verdict(entry.url, fetched.headers).optout is True

    def _hear_out(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        """Ask for the whole of an unchanged page that site or headers object to: its own words override some of theirs."""
        if entry.etag is None and entry.last_modified is None:  # it was, and a server that answers 304 to that will again
            assert self.policies is not None
            self._opt_out(host, entry, self.policies.of(entry.url, fetched.at).verdict(entry.url, fetched.headers), fetched.at, wait_s=DEAD_END_S)
            return
        entry.etag = entry.last_modified = None
        self._in_flight.discard(entry.id)
        host.queue.appendleft(entry)

    def _opt_out(self, host: Host, entry: Entry, about_ai: Verdict, at: float, *, wait_s: float) -> None:
        """Leave a page out whose site objects to training on it, and take back what an earlier visit wrote."""
        if entry.page:
            self._retract(entry, at)
        self._drop(host, entry, "ai_optout", about_ai.value, next_at=at + wait_s, columns={"page": 0, "misses": 0})

    def _follow(self, entry: Entry, page: Extracted) -> None:
        """Take up the links of a page that are in scope, no deeper than allowed, and not traps."""
        if self.settings.max_depth is not None and entry.depth >= self.settings.max_depth:
            return
        new = []
        for link in page.links[:MAX_OUTLINKS]:
            if link.nofollow or self.frontier.knows(link.url):
                continue
            self.frontier.remember(url := link.url)
            if not self.scope.allows(url):
                continue
            if (found := trap(url)) is not None:
                self._trapped(url, entry.depth + 1, *found)
                continue
            new.append(NewUrl(url, entry.depth + 1, "link"))
        if entry.depth == 0 and self.settings.sitemaps:  # not those of every page: blogs have a feed of comments for each
            new += [NewUrl(url, 0, "feed", "sitemap") for url in page.feeds if self.scope.allows(url)]
        self._add(new)

    # --- the ends of a visit ------------------------------------------------------------------------------------------

    def _add(self, urls: list[NewUrl]) -> None:
        for url_id, host_id, new in self.frontier.add_urls(urls, round_number=self.settings.round_number):
            if (refusal := self._endless(new)) is not None:
                self._refuse(url_id, *refusal)
                continue
            self.queue_size += 1
            self._wake(host_id)

    def _endless(self, new: NewUrl) -> tuple[str, Any, Any] | None:
        """Say why a new URL is not taken up: another shard's, or one too many of its kind. What a sitemap lists is vouched for."""
        shard = self.settings.shard
        if shard is not None and not shard.holds(host := host_name(new.url)):
            return "other_shard", f"{shard.of(host)}/{shard.count}", None
        if new.source != "link" or (key := _template_key(new.url)) is None:
            return None
        n, closed = self.frontier.count_template(key)
        if closed:
            return "template_closed", template(new.url), SAME_TEXTS
        most = self.settings.max_per_template
        return ("template_full", n, most) if most is not None and n > most else None

    def _refuse(self, url_id: int, rule: str, value: Any, limit: Any) -> None:
        self.frontier.finish(url_id, "trap")
        self._spool_drop(self.frontier.entry(url_id), rule, value, limit)

    def _wake(self, host_id: int) -> None:
        """Note that a host has something to fetch."""
        if host_id not in self._hosts and len(self._hosts) < MAX_HOSTS:
            self._bring(host_id)
        if (host := self._hosts.get(host_id)) is not None:
            host.exhausted = False
            self._queue(host)

    def _trapped(self, url: str, depth: int, rule: str, value: str, limit: int) -> None:
        for url_id, *_ in self.frontier.add_urls([NewUrl(url, depth, "link")], round_number=self.settings.round_number):
            self._refuse(url_id, rule, value, limit)

    def _drop(
        self, host: Host, entry: Entry, rule: str, value: Any = "", limit: Any = None, *,
        partner: str | None = None, snippet: str = "", next_at: float = 0.0, columns: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if entry.source == "guess":  # nobody said that it was there
            self._finish(host, entry, rule, next_at=next_at)
            return
        if rule == entry.rule:  # as the last visit had it: the row is there
            self.frontier.count("unchanged")
        else:
            self._spool_drop(entry, rule, value, limit, partner=partner, snippet=snippet)
        if rule != "redirect" and len(self.failures) < 100:
            self.failures.append((entry.url, rule, str(value)))
        if rule in ("timeout", "connect", "dns", "tls", "protocol", "robots_unreachable", "retry_after") or rule.startswith("http_5") or rule == "http_429":
            self.errors[rule] += 1
        self._finish(host, entry, rule, next_at=next_at, **columns or {})

    def _spool_drop(self, entry: Entry, rule: str, value: Any, limit: Any, *, partner: str | None = None, snippet: str = "") -> None:
        partner_id = url_key(partner).hex() if partner else None
        row = {"id": entry.doc_id, "url": entry.url, "stage": "crawl", "rule": rule, "value": str(value), "threshold": limit, "partner_id": partner_id, "snippet": snippet[:200]}
        self.frontier.spool("drop", entry.id, row)
        self.frontier.count(f"drop {rule}")

    def _finish(self, host: Host, entry: Entry, rule: str | None = None, *, next_at: float = 0.0, **columns: Any) -> None:
        self.frontier.finish(entry.id, rule, next_at=next_at, **columns)
        self._release(host, entry)
        self.queue_size -= 1

    def _release(self, host: Host, entry: Entry) -> None:
        host.loaded.discard(entry.id)
        self._in_flight.discard(entry.id)
        self._uncommitted += 1


def _validators(fetched: Fetched) -> dict[str, str | None]:
    """What makes the next visit conditional."""
    return {"etag": fetched.header("etag"), "last_modified": fetched.header("last-modified")}


def _template_key(url: str) -> int | None:
    name = template(url)
    return None if name is None else int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
