"""What a visit comes to: a page, an unchanged one, a redirect, a failure that may pass or one that may not, and the URLs it leads to.

    visits = Visits(settings, frontier=…, scope=…, archive=…, extractors=…, policies=…, wake=scheduler.wake)
    visits.on_page(host, entry, fetched); visits.on_extracted(page)

Each visit ends in one row, of a page or in `dropped/`, and one new state of its URL, written in one transaction. Called by the
loop (scheduler.py) in its thread; writes through the frontier and the archive alone.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmpipe.crawl.extract import Extracted, ExtractPool
from llmpipe.crawl.fetch import MAX_HOPS, Fetched
from llmpipe.crawl.frontier import MAX_INTERVAL_S, Entry, Frontier, NewUrl, url_key
from llmpipe.crawl.manners import Host
from llmpipe.crawl.optout import NOTHING, Verdict
from llmpipe.crawl.pages import Archive, page_row
from llmpipe.crawl.policies import PolicyBook
from llmpipe.crawl.robots import page_directives
from llmpipe.crawl.urls import Scope, Shard, canonical, host_name, origin, registered_domain, template, trap
from llmpipe.data.ids import content_hash

MAX_OUTLINKS = 4_000
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
class Visits:
    settings: Settings
    frontier: Frontier
    scope: Scope
    archive: Archive
    extractors: ExtractPool
    policies: PolicyBook | None
    """What sites say of AI; None: not asked."""
    wake: Callable[[int], None]
    """Told of each host that has something to fetch."""
    pages: int = 0
    """Of the visit round."""
    queue_size: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """By class, since the start."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """The first few URLs that gave no page: (url, rule, value)."""
    origins: set[str] = field(default_factory=set)
    """Of the seeds."""
    closed: set[int] = field(default_factory=set)
    """Templates of which nothing more is fetched."""
    in_flight: set[int] = field(default_factory=set)
    """Pages being fetched or extracted."""
    extracting: dict[str, tuple[Host, Entry, Fetched]] = field(default_factory=dict)
    uncommitted: int = 0
    """Visits that no transaction holds yet."""

    def load(self) -> None:
        """Take up what the frontier knows of the round."""
        self.pages, self.queue_size = self.frontier.get("round_pages", 0), self.frontier.pending()
        self.origins = {origin(url) for url in self.frontier.roots()}
        self.closed = self.frontier.closed_templates()

    # --- pages ----------------------------------------------------------------------------------------------------

    def on_page(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        if entry.page and entry.body_hash == _hash(fetched.body) and not self.objected_to(entry, fetched):
            self.unchanged(host, entry, fetched)
            return
        self.extracting[str(entry.id)] = (host, entry, fetched)
        self.extractors.submit(str(entry.id), fetched.body, fetched.url, fetched.header("content-type"), truncated=fetched.truncated is not None)

    def on_extracted(self, page: Extracted) -> Host:
        """Take in what extraction made of a page; return its host, which may be asked for more."""
        host, entry, fetched = self.extracting.pop(page.key)
        directives = page_directives(fetched.headers, page.meta_robots, self.settings.user_agent)
        if "nofollow" not in directives and not (self.closed and template_key(entry.url) in self.closed):
            self._follow(entry, page)
        text_hash = content_hash(page.text)
        validators = {**_validators(fetched), "body_hash": _hash(fetched.body)}
        about_ai = self.policies.of(entry.url, fetched.at).verdict(entry.url, fetched.headers, page.meta_robots) if self.policies is not None else NOTHING
        if about_ai.optout and self.settings.honor_optouts:
            self.opt_out(host, entry, about_ai, fetched.at, wait_s=DEAD_END_S)
        elif "noindex" in directives:
            if entry.page:
                self._retract(entry, fetched.at)
            columns = {"page": 0, "misses": 0}
            self.drop(host, entry, "noindex", ", ".join(sorted(directives)), snippet=page.text, next_at=fetched.at + DEAD_END_S, columns=columns)
        elif entry.page and text_hash == entry.text_hash:
            self.unchanged(host, entry, fetched, **validators)
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
            if (key := template_key(entry.url)) is not None and self.frontier.note_text(key, text_hash, limit=SAME_TEXTS):
                self.closed.add(key)
            next_at = fetched.at + interval
            self._finish(host, entry, next_at=next_at, interval_s=interval, page=1, misses=0, fetched_at=fetched.at, text_hash=text_hash, **validators)
        return host

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
        self.add(new)

    # --- other answers ---------------------------------------------------------------------------------------------

    def unchanged(self, host: Host, entry: Entry, fetched: Fetched, **columns: Any) -> None:
        interval = min((entry.interval_s or self.settings.revisit_s) * UNCHANGED_FACTOR, MAX_INTERVAL_S)
        self.frontier.count("unchanged")
        self.frontier.judge_lastmod(entry, changed=False)
        self._finish(host, entry, next_at=fetched.at + interval, interval_s=interval, fetched_at=fetched.at, misses=0, **columns)

    def failed(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        """A final failure of this visit. A page that an earlier visit had is `gone` after two 404s or 410s."""
        next_at = fetched.at + (DAY_S if entry.page or fetched.retry else DEAD_END_S)
        misses = entry.misses + 1 if fetched.status in (404, 410) else entry.misses
        if entry.page and fetched.status in (404, 410) and misses >= GONE_AFTER:
            self._retract(entry, fetched.at)
            self.drop(host, entry, fetched.rule or "", fetched.value, next_at=fetched.at + DEAD_END_S, columns={"page": 0, "misses": 0})
            return
        self.drop(host, entry, fetched.rule or "", fetched.value, next_at=next_at, columns={"misses": misses})

    def try_later(self, host: Host, entry: Entry, fetched: Fetched) -> bool:
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

    def on_redirect(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        target = fetched.location
        assert target is not None
        if entry.source == "seed" and not self.scope.allows(target) and registered_domain(host_name(target)) == registered_domain(host_name(entry.url)):
            self.scope.add(target)  # example.org that moved to www.example.org is what was meant
            self.frontier.add_roots([target])
            self.origins.add(origin(target))
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
            self.add([NewUrl(target, entry.depth, source, hops=entry.hops + 1, via=" ".join(chain))])
            refusal = ("redirect", target, None)
        if entry.page:
            self._retract(entry, fetched.at)
        self.drop(host, entry, *refusal, partner=target if refusal[0] == "redirect" else None, next_at=fetched.at + DEAD_END_S, columns={"page": 0})

    def on_sitemap(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        if self.try_later(host, entry, fetched):
            return
        if fetched.rule is not None and fetched.location is None:
            self.failed(host, entry, fetched)
            return
        found, next_at = fetched.sitemap, fetched.at + self.settings.revisit_s
        if fetched.status == 304:
            self.frontier.count("unchanged")
            self._finish(host, entry, next_at=next_at)
            return
        if entry.hops < MAX_HOPS:
            further = [fetched.location] if fetched.location else found.children
            self.add([NewUrl(url, entry.depth, entry.source, "sitemap", entry.hops + 1) for url in further])
        source = "feed" if entry.source == "feed" else "sitemap"
        new = [NewUrl(url, entry.depth + 1, source, lastmod=found.lastmod.get(url)) for url in found.urls if self.scope.allows(url)]
        self.add(new)
        for url in new:
            if url.lastmod is not None and (due := self.frontier.note_lastmod(url.url, url.lastmod)) is not None:
                self.frontier.count("due_by_lastmod")
                self.queue_size += 1
                self.wake(due)
        self.frontier.count("sitemaps")
        self._finish(host, entry, next_at=next_at, interval_s=self.settings.revisit_s, **_validators(fetched))

    # --- objections to training AI ---------------------------------------------------------------------------------

    def reserved(self, entry: Entry) -> bool:
        """Whether the site's tdmrep.json reserves a page, so that the page must be read for a word to the contrary."""
        return self.policies is not None and self.settings.honor_optouts and self.policies.of(entry.url, time.time()).reserves(entry.url)

    def objected_to(self, entry: Entry, fetched: Fetched) -> bool:
        """Whether site and headers object to training on a page, its own words not heard."""
        return self.policies is not None and self.settings.honor_optouts and self.policies.of(entry.url, fetched.at).verdict(entry.url, fetched.headers).optout is True

    def hear_out(self, host: Host, entry: Entry, fetched: Fetched) -> None:
        """Ask for the whole of an unchanged page that site or headers object to: its own words override some of theirs."""
        if entry.etag is None and entry.last_modified is None:  # it was, and a server that answers 304 to that will again
            assert self.policies is not None
            self.opt_out(host, entry, self.policies.of(entry.url, fetched.at).verdict(entry.url, fetched.headers), fetched.at, wait_s=DEAD_END_S)
            return
        entry.etag = entry.last_modified = None
        self.in_flight.discard(entry.id)
        host.queue.appendleft(entry)

    def opt_out(self, host: Host, entry: Entry, about_ai: Verdict, at: float, *, wait_s: float) -> None:
        """Leave a page out whose site objects to training on it, and take back what an earlier visit wrote."""
        if entry.page:
            self._retract(entry, at)
        self.drop(host, entry, "ai_optout", about_ai.value, next_at=at + wait_s, columns={"page": 0, "misses": 0})

    # --- the ends of a visit ------------------------------------------------------------------------------------------

    def _retract(self, entry: Entry, at: float) -> None:
        """Take back the page that an earlier visit wrote."""
        self.frontier.spool("page", entry.id, {"id": entry.doc_id, "url": entry.url, "text": "", "op": "gone", "source": host_name(entry.url), "fetched_at": at})
        self.frontier.count("gone")

    def drop(
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
        self.in_flight.discard(entry.id)
        self.uncommitted += 1

    # --- new URLs ----------------------------------------------------------------------------------------------------

    def add(self, urls: list[NewUrl]) -> None:
        for url_id, host_id, new in self.frontier.add_urls(urls, round_number=self.settings.round_number):
            if (refusal := self._endless(new)) is not None:
                self._refuse(url_id, *refusal)
                continue
            self.queue_size += 1
            self.wake(host_id)

    def _endless(self, new: NewUrl) -> tuple[str, Any, Any] | None:
        """Say why a new URL is not taken up: another shard's, or one too many of its kind. What a sitemap lists is vouched for."""
        shard = self.settings.shard
        if shard is not None and not shard.holds(host := host_name(new.url)):
            return "other_shard", f"{shard.of(host)}/{shard.count}", None
        if new.source != "link" or (key := template_key(new.url)) is None:
            return None
        n, closed = self.frontier.count_template(key)
        if closed:
            return "template_closed", template(new.url), SAME_TEXTS
        most = self.settings.max_per_template
        return ("template_full", n, most) if most is not None and n > most else None

    def _refuse(self, url_id: int, rule: str, value: Any, limit: Any) -> None:
        self.frontier.finish(url_id, "trap")
        self._spool_drop(self.frontier.entry(url_id), rule, value, limit)

    def _trapped(self, url: str, depth: int, rule: str, value: str, limit: int) -> None:
        for url_id, *_ in self.frontier.add_urls([NewUrl(url, depth, "link")], round_number=self.settings.round_number):
            self._refuse(url_id, rule, value, limit)


def _validators(fetched: Fetched) -> dict[str, str | None]:
    """What makes the next visit conditional."""
    return {"etag": fetched.header("etag"), "last_modified": fetched.header("last-modified")}


def template_key(url: str) -> int | None:
    name = template(url)
    return None if name is None else int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


def _hash(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
