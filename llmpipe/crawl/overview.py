"""Say what a crawl knows of its hosts, and what the seeds' robots.txt would let it do: `inspect` and `crawl --dry-run`.

    llmpipe inspect runs/crawl
    llmpipe crawl https://docs.example.org/ --output runs/crawl --dry-run

Reads `state/frontier.db` without writing to it; the dry run asks each seed's site for its robots.txt and nothing else.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe.crawl import robots
from llmpipe.crawl.urls import origin, resolve

if TYPE_CHECKING:
    from llmpipe.crawl.fetch import Fetched, Fetcher

MAX_HOSTS = 50
"""Hosts that are listed, those with most URLs first."""
MAX_SEEDS = 20
"""Seeds whose robots.txt a dry run asks for."""


def describe_frontier(path: Path, *, agent: str) -> dict[str, Any]:
    """Sum up a frontier: URLs by state and outcome, and the hosts with robots verdict, delay and trust in their lastmod."""
    quiet = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"  # never leaves a file behind
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{quiet}", uri=True)) as db:
        now = time.time()
        outcomes = dict(db.execute("SELECT CASE WHEN state < 2 THEN 'to do' WHEN page THEN 'page' ELSE coalesce(rule, kind) END AS what, count(*) FROM urls GROUP BY what ORDER BY 2 DESC"))
        totals = {
            "hosts": db.execute("SELECT count(*) FROM hosts").fetchone()[0],
            "urls": sum(outcomes.values()),
            "queue": outcomes.get("to do", 0),
            "pages": outcomes.get("page", 0),
            "due": db.execute("SELECT count(*) FROM urls WHERE state = 2 AND next_at > 0 AND next_at <= ?", (now,)).fetchone()[0],
        }
        rows = db.execute(
            "SELECT h.id, h.name, h.next_at, h.penalty_s, h.lastmod_seen, h.lastmod_right, count(*), sum(u.page), sum(u.state < 2), sum(u.state = 2 AND NOT u.page)"
            " FROM hosts h JOIN urls u ON u.host = h.id GROUP BY h.id ORDER BY count(*) DESC, h.name LIMIT ?",
            (MAX_HOSTS,),
        ).fetchall()
        hosts = [_host(db, row, agent, now) for row in rows]
    return {"frontier": totals, "outcomes": outcomes, "hosts": hosts}


def _host(db: sqlite3.Connection, row: Sequence[Any], agent: str, now: float) -> dict[str, Any]:
    host_id, name, next_at, penalty, seen, right, urls, pages, queue, dropped = row
    found: dict[str, Any] = {"host": name, "urls": urls, "pages": pages, "queue": queue, "dropped": dropped}
    errors = dict(db.execute("SELECT rule, count(*) FROM urls WHERE host = ? AND state = 2 AND NOT page AND rule IS NOT NULL GROUP BY rule ORDER BY 2 DESC LIMIT 5", (host_id,)))
    if errors:
        found["dropped_by"] = errors
    if next_at > now + 1:
        found["waits_s"] = round(next_at - now)
    if penalty:
        found["penalty_s"] = round(penalty, 1)
    if seen:
        found["lastmod_right"] = f"{right} of {seen}"
    for site in (f"https://{name}", f"http://{name}"):
        record = db.execute("SELECT status, body, fetched_at FROM robots WHERE origin = ?", (site,)).fetchone()
        if record is not None:
            found.setdefault("robots", {})[site] = {"status": record[0] or "unreachable", "hours_old": round((now - record[2]) / 3600, 1), **_verdict(record[0], record[1] or b"", site, agent)}
    return found


def _verdict(status: int, body: bytes, site: str, agent: str) -> dict[str, Any]:
    """What a robots.txt says to us: of the site's root, the delay it asks for, its sitemaps."""
    if not status:
        return {"allows": "nothing until it can be read"}
    parsed = robots.parse(body)
    rules = parsed.rules(agent) or robots.ALLOW_ALL
    verdict = rules.verdict(site + "/")
    found: dict[str, Any] = {"allows": "/" if verdict.allowed else f"not / ({verdict.rule})", "rules": len(rules.rules)}
    if rules.crawl_delay_s:
        found["crawl_delay_s"] = rules.crawl_delay_s
    if parsed.sitemaps:
        found["sitemaps"] = [resolve(site + "/", s) or s for s in parsed.sitemaps[:10]]
    return found


def ask_robots(seeds: Sequence[str], fetcher: Fetcher, *, agent: str) -> list[dict[str, Any]]:
    """Fetch the robots.txt of each seed's site; say whether the seed may be fetched, by which line, and which sitemaps there are."""
    from llmpipe.crawl.fetch import Target

    asked: dict[str, Fetched] = {}
    found = []
    for seed in seeds[:MAX_SEEDS]:
        site = origin(seed)
        if site not in asked:
            asked[site] = fetcher.fetch(Target(url=f"{site}/robots.txt", kind="robots"))
        found.append({"seed": seed, **_answer(seed, asked[site], agent)})
    return found


def _answer(seed: str, fetched: Fetched, agent: str) -> dict[str, Any]:
    if (fetched.rule and not 300 <= fetched.status < 500) or fetched.status == 429:
        return {"allowed": False, "because": f"robots.txt cannot be read ({fetched.rule}: {fetched.value})"}
    if fetched.status != 200:
        return {"allowed": True, "because": f"no robots.txt ({fetched.status})"}
    parsed = robots.parse(fetched.body)
    rules = parsed.rules(agent) or robots.ALLOW_ALL
    verdict = rules.verdict(seed)
    found: dict[str, Any] = {"allowed": verdict.allowed, "because": verdict.rule or "no rule of robots.txt speaks of it"}
    if rules.crawl_delay_s:
        found["crawl_delay_s"] = rules.crawl_delay_s
    found["sitemaps"] = [resolve(fetched.url, s) or s for s in parsed.sitemaps]
    return found
