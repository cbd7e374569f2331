"""Rules that end what has no end, share hosts among shards, and make a refresh cost nothing where nothing changed."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from llmpipe.crawl.frontier import Frontier, NewUrl
from llmpipe.crawl.scheduler import MAX_EXTRACTING
from llmpipe.crawl.sitemap import parse
from llmpipe.crawl.urls import Shard, template, trap
from llmpipe.crawl.visits import SAME_TEXTS
from llmpipe.errors import UsageError
from tests.crawl.server import Answer, answer, page, serve
from tests.crawl.test_crawl_stage import crawl, dropped, rows


def number_of(handler: BaseHTTPRequestHandler) -> int:
    return int(handler.path.rpartition("=")[2])


def test_numbers_and_values_make_one_template_of_many_urls() -> None:
    assert template("http://a.example/news/2026/11/24.html") == template("http://a.example/news/2025/1/2.html")
    assert template("http://a.example/x?id=1&sid=9e3779b1") == template("http://a.example/x?id=2&sid=00000000") != template("http://a.example/x?id=1")
    assert template("http://a.example/文/about") is None


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("/calendar?month=13&view=x", "calendar"),
        ("/calendar?month=12", None),
        ("/s?statisticsYear=7749", "calendar"),
        ("/s?date=2199-01-01", "calendar"),
        ("/s?date=2024-01-01", None),
        ("/s?date=1731000000", None),
        ("/archive/7749/01/", "calendar"),
        ("/archive/1898/06/", None),
        ("/issues/10482/", None),
        ("/?q=%25252525", "escapes_grow"),
        ("/?a=1&amp;amp;amp;b=2", "escapes_grow"),
    ],
)
def test_calendars_and_growing_escapes_are_traps(url: str, rule: str | None) -> None:
    found = trap("http://a.example" + url)
    assert (found[0] if found else None) == rule


def test_twenty_pages_of_one_text_close_their_template(tmp_path: Path) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        page("Nothing found 没有结果", links=[f"/s?q={number_of(handler) * 30 + n}" for n in range(1, 31)])(handler)

    with serve({"/": page("Home 首页", links=["/s?q=0", "/other?q=1"]), "/s": endless, "/other": page("Other")}) as site:
        outcome = crawl(tmp_path, site.url())
        assert sum(n for path, n in site.hits.items() if path.startswith("/s?")) <= SAME_TEXTS + MAX_EXTRACTING + 2 * 4  # and what was in flight
    assert outcome.counts.dropped["template_closed"] > 0
    assert {"/", "/other?q=1"} < set(rows(tmp_path))


def test_a_template_is_full_after_its_cap_but_not_what_a_sitemap_lists(tmp_path: Path) -> None:
    def item(handler: BaseHTTPRequestHandler) -> None:
        n = number_of(handler)
        page(f"Item 第{n}件", links=[f"/i?n={n + 1}"])(handler)

    listed = answer(body="<urlset>" + "".join(f"<url><loc>/i?n={n}</loc></url>" for n in (100, 200)) + "</urlset>", content_type="application/xml")
    with serve({"/": page("Home", links=["/i?n=1"]), "/i": item, "/sitemap.xml": listed}) as site:
        outcome = crawl(tmp_path, site.url(), max_per_template=7)
    assert {"/i?n=100", "/i?n=200"} < set(rows(tmp_path))
    assert (len(rows(tmp_path)), outcome.counts.dropped) == (1 + 2 + 7, {"template_full": 3})


def test_a_host_gives_no_more_than_its_share(tmp_path: Path) -> None:
    pages = {f"/p{n}": page(f"Page {n} 页", links=[f"/p{m}" for m in range(30)]) for n in range(30)}
    with serve(pages) as one, serve(pages) as two:
        first = crawl(tmp_path, one.url("/p0"), two.url("/p0"), max_pages_per_host=5)
        assert (first.counts.kept, first.counts.dropped) == (10, {"host_full": 50})
        assert sum(n for path, n in one.hits.items() if path.startswith("/p")) == 5


def test_patterns_say_what_is_followed(tmp_path: Path) -> None:
    routes = {"/": page("Home", links=["/zh/a", "/zh/print/a", "/en/a"]), "/zh/a": page("甲"), "/zh/print/a": page("甲"), "/en/a": page("A")}
    with serve(routes) as site:
        crawl(tmp_path, site.url(), include=["/zh/"], exclude=["/print/", r"\?replytocom="])
    assert set(rows(tmp_path)) == {"/", "/zh/a"}
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        crawl(tmp_path, "http://a.example/", include=["("])


def test_shards_divide_the_hosts_and_lose_none(tmp_path: Path) -> None:
    hosts = [f"{name}.invalid" for name in ("alpha", "beta", "gamma", "delta", "丁.example".encode("idna").decode())]
    with serve({"/": page("Home 首页", links=["/a"]), "/a": page("A")}) as site:
        resolve = dict.fromkeys(hosts, f"127.0.0.1:{site.port}")
        seeds = [f"http://{host}/" for host in hosts]
        counts = [crawl(tmp_path / str(i), *seeds, resolve=resolve, shard=f"{i}/3").counts.kept for i in range(3)]
    assert sum(counts) == 2 * len(hosts)
    assert counts == [2 * sum(Shard(i, 3).holds(h) for h in hosts) for i in range(3)]
    for wrong in ("3/3", "1", "0/0", "-1/2"):
        with pytest.raises(ValueError, match="shard"):
            Shard.parse(wrong)


def test_links_to_hosts_of_another_shard_are_kept_for_it(tmp_path: Path) -> None:
    ours = next(f"h{n}.example.org" for n in range(9) if Shard(0, 2).holds(f"h{n}.example.org"))
    theirs = next(f"h{n}.example.org" for n in range(9) if Shard(1, 2).holds(f"h{n}.example.org"))
    with serve({"/": page("Home", links=[f"http://{theirs}/x"])}) as site:
        crawl(tmp_path, f"http://{ours}/", resolve={ours: f"127.0.0.1:{site.port}"}, scope="domain", shard="0/2")
    assert dropped(tmp_path) == {"/x": "other_shard"}


def test_feeds_and_the_usual_sitemap_are_found(tmp_path: Path) -> None:
    head = '<link rel="alternate" type="application/rss+xml" href="/feed">'
    feed = answer(body="<rss><channel><item><link>/news/1</link></item></channel></rss>", content_type="application/rss+xml")
    routes = {"/": page("Home", head=head), "/feed": feed, "/news/1": page("News 新闻"), "/sitemap.xml": answer(body="<urlset><url><loc>/hidden</loc></url></urlset>"), "/hidden": page("Hidden")}
    with serve(routes) as site:
        crawl(tmp_path, site.url())
        assert set(rows(tmp_path)) == {"/", "/news/1", "/hidden"}
        del routes["/sitemap.xml"]
        outcome = crawl(tmp_path / "without", site.url())
        assert outcome.counts.dropped == {}  # nobody said that there was one


def conditional(send: Answer, tag: str, bodies: list[str]) -> Answer:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("If-None-Match") == tag:
            answer(304, ETag=tag)(handler)
        else:
            bodies.append(handler.path)
            send(handler)

    return reply


def test_a_refresh_where_nothing_changed_fetches_no_body_and_writes_no_part(tmp_path: Path) -> None:
    bodies: list[str] = []
    routes = {
        "/robots.txt": answer(body="User-agent: *\nAllow: /\nDisallow: /no\nSitemap: /sitemap.xml\n", content_type="text/plain", ETag='"r"'),
        "/sitemap.xml": answer(body="<urlset><url><loc>/a</loc><lastmod>2020-01-01</lastmod></url></urlset>", content_type="application/xml", ETag='"s"'),
        "/": page("Home 首页", links=["/a", "/no", "/gone"], ETag='"h"'),
        "/a": page("A", ETag='"a"'),
    }
    with serve({path: conditional(send, f'"{path[1:2] or "h"}"', bodies) for path, send in routes.items()}) as site:
        crawl(tmp_path, site.url(), revisit_h=0)
        assert sorted(bodies) == sorted(routes)
        with closing(sqlite3.connect(tmp_path / "state" / "frontier.db")) as db, db:
            db.execute("UPDATE robots SET fetched_at = fetched_at - 86400")  # a day later
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
        again = crawl(tmp_path, site.url(), refresh="all")
        assert sorted(bodies) == sorted(routes)
        assert (site.hits["/robots.txt"], site.hits["/sitemap.xml"], site.hits["/a"]) == (2, 2, 2)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == before
    assert (again.counts.kept, again.counts.dropped) == (0, {})


def test_lastmod_makes_pages_due_once_it_has_proved_right(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    url = "http://a.example/文"
    ((url_id, host, _),) = frontier.add_urls([NewUrl(url, 1, "sitemap", lastmod=10.0)], round_number=1)
    frontier.finish(url_id, page=1, fetched_at=100.0)
    assert frontier.note_lastmod(url, 200.0) is None  # not proved yet
    for _ in range(19):
        frontier.judge_lastmod(frontier.entry(url_id), changed=True)
    assert frontier.note_lastmod(url, 201.0) is None
    frontier.judge_lastmod(frontier.entry(url_id), changed=True)
    assert frontier.note_lastmod(url, 99.0) is None  # older than the visit
    assert frontier.note_lastmod(url, 202.0) == host
    assert frontier.pending() == 1
    frontier.finish(url_id, page=1, fetched_at=300.0)
    frontier.note_lastmod(url, 400.0)
    frontier.finish(url_id, page=1, fetched_at=300.0)
    for _ in range(20):  # a sitemap that says "now" whenever it is asked
        frontier.judge_lastmod(frontier.entry(url_id), changed=False)
    assert frontier.note_lastmod(url, 500.0) is None


def test_dates_of_sitemaps_are_read_as_w3c_writes_them() -> None:
    body = "".join(f"<url><loc>/{n}</loc><lastmod>{d}</lastmod></url>" for n, d in enumerate(["2026-11-24", "2026-11-24T08:00:00+08:00", "2026-11", "2026-11-24T00:00:00.5Z", "gestern", "9999999-01-01"]))
    found = parse(f"<urlset>{body}</urlset>".encode(), "http://a.example/").lastmod
    midnight = 1_795_478_400.0
    assert found == {"http://a.example/0": midnight, "http://a.example/1": midnight, "http://a.example/2": midnight - 23 * 86_400, "http://a.example/3": midnight + 0.5}


def test_a_page_that_falls_due_within_a_tenth_of_its_interval_is_visited(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.db")
    ids = [i for i, *_ in frontier.add_urls([NewUrl(f"http://a.example/{n}", 1, "link") for n in range(2)], round_number=1)]
    now = time.time()
    frontier.finish(ids[0], page=1, next_at=now + 60, interval_s=86_400)  # cron comes a minute early
    frontier.finish(ids[1], page=1, next_at=now + 60, interval_s=300)
    assert frontier.due(now, everything=False) == 1


def test_a_page_that_must_not_be_kept_any_more_is_taken_back(tmp_path: Path) -> None:
    routes: dict[str, Answer] = {"/": page("Home", links=["/a", "/b"]), "/a": page("A 甲"), "/b": page("B 乙")}
    with serve(routes) as site:
        crawl(tmp_path, site.url())
        routes["/a"] = page("A 甲", head='<meta name="robots" content="noindex">')
        routes["/b"] = answer(301, Location="/c")
        routes["/c"] = page("B 乙, moved")
        outcome = crawl(tmp_path, site.url(), refresh="all")
    assert (outcome.counts.extra["gone"], outcome.counts.dropped) == (2, {"noindex": 1, "redirect": 1})
    assert set(rows(tmp_path)) == {"/", "/c"}


def test_settings_of_bounds_are_checked(tmp_path: Path) -> None:
    for wrong in ({"max_pages_per_host": 0}, {"max_per_template": 0}, {"shard": "2/2"}):
        with pytest.raises((ValueError, UsageError)):
            crawl(tmp_path, "http://a.example/", **wrong)


@pytest.mark.parametrize(("mode", "status", "pages"), [("honor", 403, 1), ("strict", 403, 0), ("strict", 404, 1), ("ignore", 503, 1), ("honor", 503, 0)])
def test_what_a_missing_robots_means_is_told_by_its_status_and_the_mode(tmp_path: Path, mode: str, status: int, pages: int) -> None:
    with serve({"/robots.txt": answer(status), "/": page("Home 首页")}) as site, serve({"/": page("Other 别处")}) as other:
        outcome = crawl(tmp_path, site.url(), other.url(), robots=mode, max_tries=1)
    assert outcome.counts.kept == pages + 1
    assert outcome.manifest.recipe["config"]["robots"] == mode


def test_ignoring_robots_still_heeds_its_delay_and_sitemaps(tmp_path: Path) -> None:
    rules = answer(body="User-agent: *\nDisallow: /\nCrawl-delay: 0.01\nSitemap: /map.xml\n", content_type="text/plain")
    listed = answer(body="<urlset><url><loc>/listed</loc></url></urlset>", content_type="application/xml")
    with serve({"/robots.txt": rules, "/map.xml": listed, "/": page("Home 首页"), "/listed": page("Listed")}) as site:
        crawl(tmp_path, site.url(), robots="ignore")
    assert set(rows(tmp_path)) == {"/", "/listed"}


def test_a_crawl_delay_longer_than_a_run_would_wait_leaves_the_host_for_later(tmp_path: Path) -> None:
    with serve({"/robots.txt": answer(body="User-agent: *\nCrawl-delay: 3600\n", content_type="text/plain"), "/": page("Home")}) as site, serve({"/": page("Other")}) as other:
        outcome = crawl(tmp_path, site.url(), other.url())
        assert (outcome.counts.kept, outcome.counts.dropped, site.hits["/"]) == (1, {"crawl_delay": 1}, 0)


def test_a_robots_cut_short_by_the_network_is_asked_for_again(tmp_path: Path) -> None:
    cut = answer(body="User-agent: *\nAllow: /\n", content_type="text/plain", Content_Length="500", Connection="close")
    routes: dict[str, Answer] = {"/": page("Home", links=["/no"]), "/no": page("No")}

    def robots(handler: BaseHTTPRequestHandler) -> None:
        whole = answer(body="User-agent: *\nAllow: /\nDisallow: /no\n", content_type="text/plain")
        (whole if site.hits["/robots.txt"] > 1 else cut)(handler)
        handler.close_connection = True

    with serve({**routes, "/robots.txt": robots}) as site:
        crawl(tmp_path, site.url())
    assert (set(rows(tmp_path)), dropped(tmp_path)) == ({"/"}, {"/no": "robots"})
