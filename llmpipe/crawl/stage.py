"""Collect web sites politely into documents.

    llmpipe crawl https://docs.example.org/ --output runs/crawl --set max_pages=500

Reads the sites below its seeds, as scope, robots.txt and the limits allow. Writes `part-*.parquet` (a row per page that
answered 200 with text), `dropped/` (every other outcome, with its rule), `warc/` (the raw pages) and `state/frontier.db`,
from which a killed run goes on. Start reading at `run`; the loop is `scheduler.py`, what survives a kill `frontier.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from llmpipe.config import cosmetic, secret
from llmpipe.crawl.access import Access, HostAccess, check_key
from llmpipe.crawl.optout import AI_AGENTS
from llmpipe.crawl.robots import product_token
from llmpipe.errors import InputError, UsageError
from llmpipe.log import log
from llmpipe.work import Counts, Work

if TYPE_CHECKING:
    from llmpipe.crawl.fetch import Fetcher
    from llmpipe.crawl.frontier import Frontier
    from llmpipe.crawl.guard import Guard
    from llmpipe.crawl.scheduler import Scheduler

PLAN_TIMEOUT_S = 15.0
MAX_PROBED_HOSTS = 20
"""Seeds whose names are looked up before anything else, so that a typing error is told at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    seeds: list[str] = cosmetic(default_factory=list)
    """URLs to start from, beside those on the command line. Without a scheme: https."""
    site: Literal["pydoc"] | None = cosmetic(None)
    """An embedded site that needs no network: `pydoc`, the Python standard library's documentation, at http://pydoc.invalid/."""
    scope: Literal["host", "domain", "prefix"] = "host"
    """How far links are followed: on the seeds' hosts, on their registered domains (all of example.co.uk), or below their folders."""
    include: list[str] = field(default_factory=list)
    """Regular expressions: beside the scope, a URL must match one of them somewhere. Seeds are fetched whatever they are."""
    exclude: list[str] = field(default_factory=list)
    """Regular expressions: what matches one of them is not followed."""
    shard: str | None = None
    """i/n, such as 0/4: crawl only the hosts whose hash falls to the i-th of n crawls, counted from 0, each with an output of its own."""
    max_pages: int | None = cosmetic(None)
    """Stop after so many pages of a visit round. Raise it to go on."""
    max_pages_per_host: int | None = cosmetic(None)
    """Take no more pages of one host in a visit round."""
    max_per_template: int | None = 10_000
    """Follow links to so many URLs of a host that differ in numbers and query values alone; what sitemaps list is not counted.
    Whatever this is, 20 pages of one text close such a family of URLs."""
    max_depth: int | None = None
    """Follow so many links from a seed; 0: the seeds alone. What a sitemap lists counts as one link away."""
    delay_s: float = cosmetic(1.0)
    """Pause between requests to a host. It grows with latency and errors, and Crawl-delay in robots.txt may raise it. 0: none,
    and several connections at a time (for servers of your own); Retry-After and Crawl-delay are heeded all the same."""
    num_threads: int = cosmetic(16)
    """Fetches in flight."""
    user_agent: str = "llmpipe"
    """How the crawl calls itself; groups of robots.txt are matched to what stands before the first `/` or blank. Add a way to reach you:
    `llmpipe (+mailto:you@example.org)`."""
    ai_optout: Literal["honor", "record", "ignore"] = "honor"
    """What becomes of pages whose sites object to training AI on them (groups of AI agents in robots.txt, Content-Signal, Content-Usage,
    tdm-reservation, noai, ai.txt): left out, with the evidence in `dropped/`; kept, with verdict and evidence in `meta`; or not looked at."""
    ai_agents: list[str] = field(default_factory=lambda: list(AI_AGENTS))
    """Agents whose groups in robots.txt, X-Robots-Tag and meta elements speak for training. Only where they are named: `*` is none of them."""
    robots: Literal["honor", "strict", "ignore"] = "honor"
    """honor: robots.txt by RFC 9309, where 401 and 403 mean that there is none; strict: those forbid the site; ignore: only for sites
    whose owner you are or who agreed. It stands in the manifest."""
    allow_private: bool | list[str] = cosmetic(False)
    """Let the crawl reach loopback and private addresses: all (true), or hosts and networks: [intranet.example, 10.0.0.0/8]."""
    resolve: dict[str, str] = cosmetic(default_factory=dict)
    """Addresses that stand in for hosts, as curl's --resolve: {docs.invalid: "127.0.0.1:8000"}."""
    access: dict[str, HostAccess] = secret(default_factory=dict)
    """What a host is given beside: {wiki.example.org: {auth: $WIKI_LOGIN, headers: {X-Key: $KEY}, cookies: cookies.txt or {name: $VALUE},
    session: true, proxy: "http://proxy:3128"}}. Values name variables of the environment ($NAME). A key is a host or HOST:PORT (over https
    alone, unless `http://` stands before it), `*.example.org` (and example.org itself) or `*`; the closest one counts. Never written anywhere."""
    proxy: str | None = secret(None)
    """Proxy for all hosts: http://proxy:3128 or http://$LOGIN@proxy:3128; `env` heeds HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Where a name
    leads is checked here before the proxy is asked; what the proxy itself resolves it to cannot be seen."""
    keep_raw: bool = True
    """Keep the pages as they came in WARC files, so that extraction can be done again without another crawl."""
    metadata: bool = False
    """Look for author, date, site name and tags too, which adds about half to the time of extraction."""
    sitemaps: bool = True
    """Take up the sitemaps that robots.txt names (where it names none, /sitemap.xml of the seeds' sites) and the feeds of the seeds' pages."""
    max_bytes: int = 5 << 20
    """Pages longer than this, inflated, are dropped."""
    timeout_s: float = cosmetic(60.0)
    """Longest time for one fetch, all in all."""
    extract_timeout_s: float = cosmetic(20.0)
    """Longest time for the extraction of one page; then its text is taken by simpler means."""
    max_tries: int = cosmetic(3)
    """Attempts at a URL, and at a robots.txt, that fails in a way that may pass (5xx, 429, no answer)."""
    retry_s: float = cosmetic(5.0)
    """Pause before the second attempt; doubles with each."""
    max_wait_s: float = cosmetic(600.0)
    """A host that asks for a longer pause (Retry-After, Crawl-delay) is left for the next round."""
    refresh: Literal["due", "all", "none"] = cosmetic("due")
    """What a run does when a round is complete: visit again what is due, everything, or nothing. Only new, changed and gone pages are written."""
    revisit_h: float = cosmetic(24.0)
    """Hours until a page is due again, at first; longer while it stays the same (at most 90 days), shorter while it changes."""

    def __post_init__(self) -> None:
        from llmpipe.crawl.guard import Guard
        from llmpipe.crawl.urls import Shard, any_of

        Guard(allow_private=self.allow_private, resolve=self.resolve)  # ValueError for an address that is none
        for key in self.access:
            check_key(key)
        any_of([*self.include, *self.exclude])
        for name in self.ai_agents:
            if not product_token(name):
                raise ValueError(f"ai_agents: {name!r} must begin with the name of an agent; `*` stands for none")
        if self.shard is not None:
            Shard.parse(self.shard)
        for name in ("num_threads", "max_tries", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("delay_s", "retry_s", "max_wait_s", "revisit_h"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: must not be negative, got {getattr(self, name):g}")
        for name in ("timeout_s", "extract_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name):g}")
        if any(n is not None and n < 1 for n in (self.max_pages, self.max_pages_per_host, self.max_per_template)) or (self.max_depth is not None and self.max_depth < 0):
            raise ValueError("max_pages, max_pages_per_host and max_per_template must be at least 1 and max_depth at least 0; null lifts them")
        if not self.user_agent.isprintable() or not self.user_agent.isascii() or not self.user_agent[:1].isalpha():
            raise ValueError(f"user_agent: {self.user_agent!r} must be printable ASCII and begin with a name")


def run(config: Config, work: Work) -> Counts:
    """Go on with the visit round that is under way, or begin one if there is something to visit."""
    from llmpipe.crawl.frontier import Frontier
    from llmpipe.crawl.guard import Guard

    access = Access(config.access, proxy=config.proxy, environ=os.environ)
    with ExitStack() as stack:
        seeds, resolve = parse_seeds([*work.seeds, *config.seeds]), dict(config.resolve)
        if config.site == "pydoc":
            from llmpipe.crawl.sites import serve_pydoc

            site = stack.enter_context(serve_pydoc())
            seeds, resolve = [*seeds, *site.seeds], {**resolve, **site.resolve}
        seeds = _of_shard(seeds, config)
        guard = Guard(allow_private=config.allow_private, resolve=resolve)
        path = frontier_path(work.output)
        if not seeds and not path.exists() and config.shard is None:
            raise UsageError("no seeds: there is nowhere to start", hint="llmpipe crawl https://example.org/ --output DIR, or seeds: [...] in the config")
        if seeds and not path.exists():
            _probe([s for s in seeds if access.proxy(s) is None], guard)
        for key in dict.fromkeys(key for seed in seeds if (key := access.withheld(seed)) is not None):
            log.warning("access.%s is for https, so http://%s is given nothing of it; name it http://%s to send it unencrypted", key, key, key)
        frontier = stack.enter_context(closing(Frontier(path)))
        frontier.generation = work.generation
        frontier.finish_seal(work.output)
        new_seeds = [s for s in seeds if not frontier.has(s)]
        number = _begin_round(frontier, config, new_seeds)
        if number is not None:
            scheduler = _crawl(config, work, frontier, guard, access, number)
            if not frontier.get("round_pages", 0) and new_seeds:
                if not (opted_out := frontier.counts().get("drop ai_optout", 0)):
                    frontier.forget_round(number, work.output)
                    raise _nothing_fetched(scheduler.visits.failures)
                log.warning("no page was kept: sites object to training AI on %d (dropped/ says in which words); ai_optout: record would keep such pages, marked", opted_out)
            frontier.set("complete", 1)
            frontier.commit()
        return _outcome(frontier, work)


def due(config: Config, work: Work) -> bool:
    """Whether a complete crawl has something to do: new seeds, a raised limit, pages to visit again."""
    from llmpipe.crawl.frontier import Frontier

    path = frontier_path(work.output)
    seeds = _of_shard(parse_seeds([*work.seeds, *config.seeds]), config)
    if not path.exists():
        return bool(seeds or config.site) and config.refresh == "all"
    with closing(Frontier(path)) as frontier:
        return _why(frontier, config, [s for s in seeds if not frontier.has(s)]) is not None


def plan(config: Config, work: Work) -> dict[str, Any]:
    """What `--dry-run` adds: what the seeds' robots.txt allow, their sitemaps, and what the frontier holds."""
    from llmpipe.crawl.fetch import Fetcher
    from llmpipe.crawl.guard import Guard
    from llmpipe.crawl.overview import ask_robots, describe_frontier

    seeds = parse_seeds([*work.seeds, *config.seeds])
    access = Access(config.access, proxy=config.proxy, environ=os.environ)
    guard = Guard(allow_private=config.allow_private, resolve=config.resolve)
    fetcher = Fetcher(guard, user_agent=config.user_agent, max_bytes=config.max_bytes, timeout_s=min(config.timeout_s, PLAN_TIMEOUT_S), access=access)
    found: dict[str, Any] = {"scope": config.scope, "refresh": config.refresh, "max_pages": config.max_pages, "max_depth": config.max_depth}
    found["seeds"] = ask_robots(_of_shard(seeds, config), fetcher, agent=config.user_agent)
    if config.site:
        found["site"] = config.site
    if (path := frontier_path(work.output)).exists():
        found.update(describe_frontier(path, agent=config.user_agent))
    return found


def frontier_path(output: Path) -> Path:
    return output / "state" / "frontier.db"


def _of_shard(seeds: list[str], config: Config) -> list[str]:
    """Leave out seeds on hosts that another shard crawls."""
    from llmpipe.crawl.urls import Shard, host_name

    if config.shard is None:
        return seeds
    shard = Shard.parse(config.shard)
    return [seed for seed in seeds if shard.holds(host_name(seed))]


def parse_seeds(texts: Sequence[str]) -> list[str]:
    """Read URLs as people write them; a `UsageError` names one that cannot be crawled."""
    from llmpipe.crawl.urls import parse_seed

    seeds = []
    for text in texts:
        place, at, host = text.partition("://")[2 * ("://" in text)].partition("/")[0].rpartition("@")
        if at and place:
            raise UsageError(f"a seed holds a user name or password before {host}", hint=f"leave it out, and give it as access: {{{host}: {{auth: $LOGIN}}}} with LOGIN=user:password in the environment; it is never written anywhere")
        url = parse_seed(text)
        if url is None:
            raise UsageError(f"{text!r} is not a URL that can be crawled", hint="seeds look like https://example.org/docs/; ingest reads files")
        seeds.append(url)
    return list(dict.fromkeys(seeds))


def _probe(seeds: Sequence[str], guard: Guard) -> None:
    """Look up the seeds' hosts; raise when none of them can be reached at all. Nothing was written yet."""
    from llmpipe.crawl.guard import Refused

    hosts = list(dict.fromkeys((urlsplit(s).hostname or "", urlsplit(s).port or (443 if s.startswith("https") else 80)) for s in seeds))
    first: Refused | None = None
    for host, port in hosts[:MAX_PROBED_HOSTS]:
        try:
            guard.lookup(host, port)
            return
        except Refused as refusal:
            first = first or refusal
    if first is None:
        return  # all go through a proxy
    raise _seed_error(seeds[0], first.rule, first.value)


def _seed_error(url: str, rule: str, value: str) -> InputError:
    host = urlsplit(url).hostname
    if rule == "dns":
        return InputError(f"{url}: the host {host} does not resolve ({value.removeprefix(f'{host}: ')})", hint="check the spelling, and the network; resolve: {HOST: ADDRESS:PORT} names an address for it")
    if rule == "private_address":
        return InputError(
            f"{url}: {host} is at the private address {value}, which a crawl does not reach unless told to",
            hint=f"--set allow_private=true allows it, --set 'allow_private=[{host}]' this host alone",
        )
    reason = f"{rule} ({value})" if value else rule
    hints = {
        "robots": "the site asks not to be crawled there",
        "robots_unreachable": "a site whose robots.txt cannot be read must not be crawled; try later",
        "redirect_out_of_scope": "give the address that it redirects to as the seed",
        "tls": "the server's certificate cannot be verified; SSL_CERT_FILE names further authorities",
    }
    return InputError(f"{url}: {reason}", hint=hints.get(rule, "check the address in a browser"))


def _nothing_fetched(failures: Sequence[tuple[str, str, str]]) -> InputError:
    """Say why a crawl came to nothing: by its first failure, counting the others."""
    if not failures:
        return InputError("no page could be fetched", hint="try the seeds in a browser")
    error = _seed_error(*failures[0])
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return InputError(f"no page could be fetched: {error.message}{more}", hint=error.hint)


# --- visit rounds ---------------------------------------------------------------------------------------------------


def _why(frontier: Frontier, config: Config, new_seeds: Sequence[str]) -> Literal["continue", "reopen", "revisit", "seeds"] | None:
    """Say what there is to do; None: nothing."""
    import time

    if not frontier.get("complete", 0):
        return "continue"
    if config.refresh == "all":
        return "revisit"
    if frontier.pending() and (config.max_pages is None or frontier.get("round_pages", 0) < config.max_pages):
        return "reopen"
    if new_seeds:
        return "seeds"
    if config.refresh == "due" and frontier.due(time.time(), everything=False):
        return "revisit"
    return None


def _begin_round(frontier: Frontier, config: Config, new_seeds: Sequence[str]) -> int | None:
    """Open a visit round, or go on with the last; return its number, or None when there is nothing to do."""
    import time

    from llmpipe.crawl.frontier import NewUrl

    why, number = _why(frontier, config, new_seeds), frontier.get("round", 0)
    if why is None:
        return None
    if number == 0 or why in ("revisit", "seeds"):
        number += 1
        frontier.set("round", number)
        frontier.set("round_pages", 0)
        frontier.forget_unreachable()
        if config.refresh != "none":
            frontier.start_revisit(time.time(), everything=config.refresh == "all")
    frontier.set("complete", 0)
    frontier.add_urls([NewUrl(s, 0, "seed") for s in new_seeds], round_number=number)
    frontier.add_roots(new_seeds)
    frontier.commit()
    return number


def _crawl(config: Config, work: Work, frontier: Frontier, guard: Guard, access: Access, number: int) -> Scheduler:
    from llmpipe.crawl.extract import ExtractPool

    with ExitStack() as stack:
        extractors = stack.enter_context(ExtractPool(work.workers, timeout_s=config.extract_timeout_s, metadata=config.metadata))
        if number == 1:  # later rounds may find that nothing changed
            extractors.start()
        from llmpipe.crawl.fetch import Fetcher
        from llmpipe.crawl.manners import RobotsBook
        from llmpipe.crawl.pages import Archive
        from llmpipe.crawl.policies import PolicyBook
        from llmpipe.crawl.scheduler import Progress, Scheduler
        from llmpipe.crawl.threads import FetchThreads
        from llmpipe.crawl.urls import Scope, Shard
        from llmpipe.crawl.visits import Settings

        archive = stack.enter_context(closing(Archive(work.output, frontier, keep=config.keep_raw)))
        fetcher: Fetcher = Fetcher(guard, user_agent=config.user_agent, max_bytes=config.max_bytes, timeout_s=config.timeout_s, access=access)
        fetchers = stack.enter_context(closing(FetchThreads(fetcher, num_threads=config.num_threads)))
        scheduler = Scheduler(
            settings=Settings(
                user_agent=config.user_agent,
                delay_s=config.delay_s,
                num_threads=config.num_threads,
                max_tries=config.max_tries,
                retry_s=config.retry_s,
                max_pages=config.max_pages,
                max_depth=config.max_depth,
                max_pages_per_host=config.max_pages_per_host,
                max_per_template=config.max_per_template,
                shard=Shard.parse(config.shard) if config.shard else None,
                sitemaps=config.sitemaps,
                revisit_s=config.revisit_h * 3600,
                max_wait_s=config.max_wait_s,
                round_number=number,
                honor_optouts=config.ai_optout == "honor",
            ),
            frontier=frontier,
            fetchers=fetchers,
            extractors=extractors,
            robots=RobotsBook(frontier, agent=config.user_agent, max_tries=config.max_tries, retry_s=config.retry_s, max_wait_s=config.max_wait_s, mode=config.robots),
            scope=Scope.of(config.scope, frontier.roots(), include=config.include, exclude=config.exclude),
            archive=archive,
            output=work.output,
            policies=None if config.ai_optout == "ignore" else PolicyBook(frontier, agent=config.user_agent, ai_agents=config.ai_agents),
        )

        def report(p: Progress) -> None:
            work.progress.update(p.pages, config.max_pages, queue=p.queue, hosts=p.hosts, pages_per_s=p.rate, errors=", ".join(f"{n} {rule}" for rule, n in sorted(p.errors.items())) or 0)

        scheduler.run(report)
    return scheduler


def _outcome(frontier: Frontier, work: Work) -> Counts:
    """List this generation's files in the manifest and count by what the frontier committed, kills or not."""
    for name, rows in frontier.files():
        work.add_file(work.output / name, rows=rows)
    counts = frontier.counts()
    dropped = {name.removeprefix("drop "): n for name, n in counts.items() if name.startswith("drop ")}
    pages = counts.get("pages", 0)
    extra = {name: n for name, n in counts.items() if not name.startswith("drop ") and name != "pages"}
    return Counts(read=pages + sum(dropped.values()) + counts.get("unchanged", 0), kept=pages, dropped=dropped, extra=extra)
