"""Rules of a whole crawl: one row per page, one counted outcome for every other URL, and manners that show in what a server sees."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from itertools import count, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest

from llmpipe.crawl.stage import Config
from llmpipe.data.docs import meta_value, read_docs
from llmpipe.data.manifest import find_manifest, verify_manifest
from llmpipe.errors import InputError, UsageError
from llmpipe.stage import STAGES, Options, Outcome, Request, run_stage
from tests.crawl.server import Answer, answer, page, redirect, serve


def crawl(output: Path, *seeds: str, **settings: Any) -> Outcome:
    config = Config(**{"allow_private": True, "delay_s": 0.0, "retry_s": 0.05, "num_threads": 4, "refresh": "none", **settings})
    return run_stage(STAGES["crawl"], config, Request(output=output, seeds=seeds), Options(workers=1))


def rows(output: Path) -> dict[str, dict[str, Any]]:
    """Live documents by path; fails when one stands twice."""
    found = [row for batch in read_docs(output) for row in batch.to_pylist()]
    by_path = {path_of(row["url"]): row for row in found}
    assert len(by_path) == len(found)
    return by_path


def dropped(output: Path) -> dict[str, str]:
    found = [row for file in sorted((output / "dropped").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert all(row["stage"] == "crawl" and len(row["id"]) == 32 for row in found)
    return {path_of(row["url"]): row["rule"] for row in found}


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + ("?" + parts.query if parts.query else "")


def test_every_outcome_is_one_row_and_is_counted(tmp_path: Path) -> None:
    links = [
        "/good", "/good#part", "/%67ood?utm_source=x", "/empty", "/missing", "/broken", "/image.png", "/big", "/moved", "/loop1", "/away", "/mailto",
        "/secret/x", "/deep" * 21, "/same/same/same/x", "/short", "/noindex", "/gbk", "mailto:a@b.example", "http://other.invalid/", "/hop0", "/plain.txt",
    ]  # fmt: skip
    routes: dict[str, Answer] = {
        "/robots.txt": answer(body="User-agent: *\nDisallow: /secret/\n", content_type="text/plain"),
        "/": page("Start 开始", links=[*links, "/followed"], head='<link rel="canonical" href="/home">'),
        "/followed": answer(body='<html><body><p>plain</p><a rel="nofollow" href="/shy">x</a><a href="/good">y</a></body></html>'),
        "/good": page("Good 好"),
        "/empty": answer(body="<html><body></body></html>"),
        "/broken": answer(500, "oops"),
        "/image.png": answer(body=b"\x89PNG", content_type="image/png"),
        "/big": answer(body="<p>" + "x" * 300_000),
        "/moved": redirect("/target"),
        "/target": page("Target 目标"),
        "/loop1": redirect("/loop2"),
        "/loop2": redirect("/loop1"),
        "/away": redirect("http://elsewhere.invalid/"),
        "/short": answer(body="<html><body><p>cut short</p>", Content_Length="5000", Connection="close"),
        "/noindex": page("Hidden 隐", links=["/behind"], X_Robots_Tag="noindex"),
        "/behind": answer(body='<html><head><meta name="robots" content="nofollow"></head><body><p>end</p><a href="/never">x</a></body></html>'),
        "/gbk": answer(body="<html><body><p>河水流过安静的小镇，人们在这里读书。</p></body></html>".encode("gbk"), content_type="text/html; charset=gb2312"),
        "/plain.txt": answer(body="Just text. 纯文本。", content_type="text/plain; charset=utf-8"),
        **{f"/hop{n}": redirect(f"/hop{n + 1}") for n in range(8)},
    }
    with serve(routes) as site:
        outcome = crawl(tmp_path / "out", site.url(), max_bytes=200_000)
    found, lost = rows(tmp_path / "out"), dropped(tmp_path / "out")
    assert set(found) == {"/", "/followed", "/good", "/empty", "/target", "/short", "/behind", "/gbk", "/plain.txt"}
    assert lost == {
        "/missing": "http_404", "/broken": "http_500", "/image.png": "wrong_type", "/big": "too_large", "/moved": "redirect", "/loop1": "redirect",
        "/loop2": "redirect_loop", "/away": "redirect_out_of_scope", "/mailto": "http_404", "/secret/x": "robots", "/deep" * 21: "path_too_deep",
        "/same/same/same/x": "path_repeats", "/noindex": "noindex", **{f"/hop{n}": "redirect" for n in range(5)}, "/hop5": "redirect_too_many",
    }  # fmt: skip
    assert not {"/secret/x", "/same/same/same/x", "/shy", "/never", "/hop6"} & set(site.hits)
    assert site.hits["/good"] == 1 and site.hits["/broken"] == 3 and site.hits["/short"] == 2
    counts = outcome.counts
    assert (counts.kept, counts.dropped) == (len(found), dict(Counter(lost.values())))
    assert counts.read == counts.kept + sum(counts.dropped.values())
    assert "小镇" in found["/good"]["text"] and "安静的小镇" in found["/gbk"]["text"] and found["/empty"]["text"] == ""
    assert (found["/target"]["op"], found["/target"]["source"]) == ("new", urlsplit(site.url()).netloc)
    assert meta_value(found["/target"]["meta"], "redirects") == site.url("/moved")
    assert meta_value(found["/short"]["meta"], "truncated")
    assert meta_value(found["/"]["meta"], "canonical") == site.url("/home")
    assert meta_value(found["/gbk"]["meta"], "encoding") == "gb18030"
    manifest = find_manifest(tmp_path / "out")
    assert manifest is not None and verify_manifest(tmp_path / "out", manifest) == []


def test_the_raw_page_lies_where_its_row_says(tmp_path: Path) -> None:
    with serve({"/": page("Raw 原文", links=["/b"]), "/b": page("B")}) as site:
        crawl(tmp_path / "out", site.url())
        crawl(tmp_path / "bare", site.url(), keep_raw=False)
    for row in rows(tmp_path / "out").values():
        name, offset, length = meta_value(row["meta"], "raw_ref").split(":")
        member = gzip.decompress((tmp_path / "out" / name).read_bytes()[int(offset) : int(offset) + int(length)])
        assert f"WARC-Target-URI: {row['url']}".encode() in member and b"<main>" in member
    assert not (tmp_path / "bare" / "warc").exists()
    assert all(meta_value(row["meta"], "raw_ref") is None for row in rows(tmp_path / "bare").values())


@pytest.mark.parametrize("refresh", ["none", "due"])
def test_a_second_run_fetches_nothing(tmp_path: Path, refresh: str) -> None:
    with serve({"/": page("One 一", links=["/b", "/missing"]), "/b": page("Two 二")}) as site:
        crawl(tmp_path, site.url(), refresh=refresh)
        before, hits = (tmp_path / "manifest.json").read_bytes(), site.hits.copy()
        assert crawl(tmp_path, site.url(), refresh=refresh).state == "fresh"
        assert crawl(tmp_path, refresh=refresh).state == "fresh"
        assert (site.hits, (tmp_path / "manifest.json").read_bytes()) == (hits, before)


def test_a_new_seed_is_crawled_as_a_new_generation(tmp_path: Path) -> None:
    with serve({"/": page("One"), "/island": page("岛", links=["/", "/far"]), "/far": page("远")}) as site:
        crawl(tmp_path, site.url())
        outcome = crawl(tmp_path, site.url(), site.url("/island"))
        assert (outcome.counts.kept, len(outcome.manifest.generations), site.hits["/"]) == (2, 2, 1)
    assert set(rows(tmp_path)) == {"/", "/island", "/far"}


def test_max_pages_counts_a_round_and_can_be_raised(tmp_path: Path) -> None:
    routes = {f"/{n}": page(f"Page {n}", links=[f"/{n + 1}", f"/{n + 2}", f"/gone{n}"]) for n in range(30)}
    with serve(routes) as site:
        assert crawl(tmp_path, site.url("/0"), max_pages=7).counts.kept == 7
        assert len(rows(tmp_path)) == 7
        assert crawl(tmp_path, site.url("/0"), max_pages=7).state == "fresh"
        assert crawl(tmp_path, site.url("/0"), max_pages=12).counts.kept == 5
        assert crawl(tmp_path, site.url("/0"), max_pages=None).counts.kept == 18
    assert len(rows(tmp_path)) == 30


def test_max_depth_is_the_shortest_way_from_a_seed(tmp_path: Path) -> None:
    slow = count()

    def late(handler: BaseHTTPRequestHandler) -> None:
        import time

        next(slow)
        time.sleep(0.2)
        page("Late", links=["/x"])(handler)

    # /x is two links away by /late, which is slow, and three by /a and /b
    routes = {"/": page("Root", links=["/a", "/late"]), "/late": late, "/a": page("A", links=["/b"]), "/b": page("B", links=["/x"]), "/x": page("X", links=["/y"]), "/y": page("Y")}
    with serve(routes) as site:
        crawl(tmp_path / "two", site.url(), max_depth=2)
        assert set(rows(tmp_path / "two")) == {"/", "/a", "/late", "/b", "/x"}
        crawl(tmp_path / "three", site.url(), max_depth=3)
        assert set(rows(tmp_path / "three")) == {"/", "/a", "/late", "/b", "/x", "/y"}
        assert meta_value(rows(tmp_path / "three")["/x"]["meta"], "depth") == "2"
        crawl(tmp_path / "zero", site.url(), max_depth=0)
        assert set(rows(tmp_path / "zero")) == {"/"}


def test_scope_of_a_prefix_and_of_a_domain(tmp_path: Path) -> None:
    links = ["/docs/a", "/blog/b", "http://www.example.org/c", "http://evil.example.net/d"]
    routes = {"/docs/": page("Docs", links=links), **{p: page(p) for p in ("/docs/a", "/blog/b", "/c", "/d")}}
    with serve(routes) as site:
        local = dict.fromkeys(("example.org", "www.example.org", "evil.example.net"), f"127.0.0.1:{site.port}")
        crawl(tmp_path / "prefix", "http://example.org/docs/", scope="prefix", resolve=local, allow_private=False)
        assert set(rows(tmp_path / "prefix")) == {"/docs/", "/docs/a"}
        crawl(tmp_path / "domain", "http://example.org/docs/", scope="domain", resolve=local, allow_private=False)
        assert set(rows(tmp_path / "domain")) == {"/docs/", "/docs/a", "/blog/b", "/c"}


def test_a_seed_that_moved_within_its_domain_takes_the_scope_along(tmp_path: Path) -> None:
    def start(handler: BaseHTTPRequestHandler) -> None:
        (redirect("http://www.example.org/") if handler.headers["Host"] == "example.org" else page("Moved 搬家", links=["/a"]))(handler)

    with serve({"/": start, "/a": page("A")}) as site:
        local = dict.fromkeys(("example.org", "www.example.org"), f"127.0.0.1:{site.port}")
        crawl(tmp_path, "http://example.org/", resolve=local, allow_private=False)
    assert {row["url"] for row in rows(tmp_path).values()} == {"http://www.example.org/", "http://www.example.org/a"}


def test_sitemaps_that_robots_names_are_taken_up(tmp_path: Path) -> None:
    with serve(routes := {}) as site:
        pages = f"<urlset><url><loc>{site.url('/one')}</loc></url><url><loc>{site.url('/two')}</loc></url><url><loc>http://other.invalid/</loc></url></urlset>"
        routes |= {
            "/robots.txt": answer(body=f"Sitemap: {site.url('/index.xml')}\nSitemap: /missing.xml\n"),
            "/index.xml": answer(body=f"<sitemapindex><sitemap><loc>{site.url('/s.xml.gz')}</loc></sitemap><sitemap><loc>{site.url('/index.xml')}</loc></sitemap></sitemapindex>", content_type="text/xml"),
            "/s.xml.gz": answer(body=gzip.compress(pages.encode()), content_type="application/gzip"),
            "/": page("Home"), "/one": page("One"), "/two": page("Two 二"),
        }  # fmt: skip
        outcome = crawl(tmp_path / "with", site.url())
        assert set(rows(tmp_path / "with")) == {"/", "/one", "/two"}
        assert (outcome.counts.extra["sitemaps"], dropped(tmp_path / "with")) == (2, {"/missing.xml": "http_404"})
        crawl(tmp_path / "without", site.url(), sitemaps=False)
        assert set(rows(tmp_path / "without")) == {"/"}


def test_robots_that_fail_are_tried_again_and_then_forbid(tmp_path: Path) -> None:
    tries = count()

    def flaky(handler: BaseHTTPRequestHandler) -> None:
        (answer(503, "later") if next(tries) == 0 else answer(body="User-agent: *\nDisallow: /x\n"))(handler)

    with serve({"/robots.txt": flaky, "/": page("Home", links=["/x"]), "/x": page("X")}) as site:
        crawl(tmp_path / "flaky", site.url())
        assert (set(rows(tmp_path / "flaky")), dropped(tmp_path / "flaky")) == ({"/"}, {"/x": "robots"})
    with serve({"/robots.txt": answer(500, "never"), "/": page("Home")}) as site:
        with pytest.raises(InputError, match="robots_unreachable.*http_500"):
            crawl(tmp_path / "down", site.url())
        assert (site.hits["/robots.txt"], site.hits["/"]) == (3, 0)


def test_with_a_delay_a_host_sees_one_connection_and_one_request_at_a_time(tmp_path: Path) -> None:
    import time

    arrivals: list[float] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        arrivals.append(time.monotonic())
        page("Calm 静", links=[f"/{n}" for n in range(8)])(handler)

    with serve({"/": note, **{f"/{n}": note for n in range(8)}}) as site:
        crawl(tmp_path, site.url(), delay_s=0.1)
        assert site.connections == 1
    assert len(rows(tmp_path)) == len(arrivals) == 9
    assert min(later - before for before, later in pairwise(arrivals)) >= 0.1


def test_a_crawl_delay_is_heeded_though_no_delay_is_set(tmp_path: Path) -> None:
    robots = answer(body="User-agent: *\nCrawl-delay: 0.2\n")
    with serve({"/robots.txt": robots, **{f"/{n}": page(f"{n}", links=["/1", "/2", "/3"]) for n in range(4)}}) as site:
        outcome = crawl(tmp_path, site.url("/0"), delay_s=0)
        assert site.connections == 1
    assert outcome.counts.kept == 4 and outcome.seconds > 0.6


def test_retry_after_is_waited_for_and_no_other_request_comes_before(tmp_path: Path) -> None:
    import time

    seen: list[tuple[str, float]] = []

    def note(path: str, then: Callable[[], Answer]) -> Answer:
        def send(handler: BaseHTTPRequestHandler) -> None:
            seen.append((path, time.monotonic()))
            then()(handler)

        return send

    tries = count()
    routes = {"/": note("/", lambda: answer(429, "slow down", Retry_After="1") if next(tries) == 0 else page("Home", links=["/b"])), "/b": note("/b", lambda: page("B"))}
    with serve(routes) as site:
        crawl(tmp_path, site.url())
    assert [path for path, _ in seen] == ["/", "/", "/b"]
    assert seen[1][1] - seen[0][1] >= 1.0


def test_a_host_that_asks_for_hours_is_left_for_the_next_round(tmp_path: Path) -> None:
    with serve({"/": page("Home", links=["/busy", "/c"]), "/busy": answer(503, "", Retry_After="7200"), "/c": page("C")}) as site:
        crawl(tmp_path, site.url(), num_threads=1)
        assert dropped(tmp_path)["/busy"] == "http_503" and site.hits["/busy"] == 1
        assert dropped(tmp_path).get("/c", "retry_after") == "retry_after"  # unless it was under way already


def test_a_redirect_into_a_private_network_is_not_followed(tmp_path: Path) -> None:
    with serve({"/": page("Public", links=["/go"]), "/internal": page("secret")}) as site:
        inside = f"http://127.0.0.1:{site.port}/internal"
        with serve({"/": page("Public", links=["/go"]), "/go": redirect(inside)}) as public:
            resolve = {"docs.invalid": f"127.0.0.1:{public.port}"}
            crawl(tmp_path, "http://docs.invalid/", f"http://127.0.0.1:{site.port}/", resolve=resolve, allow_private=False)
        assert dropped(tmp_path) == {"/go": "redirect", "/internal": "private_address", "/": "private_address"}
        assert not site.hits


def test_a_revisit_writes_what_is_new_changed_or_gone_and_nothing_else(tmp_path: Path) -> None:
    def same(handler: BaseHTTPRequestHandler) -> None:
        (answer(304) if handler.headers.get("If-None-Match") == '"v1"' else page("Same 同", ETag='"v1"'))(handler)

    routes: dict[str, Answer] = {"/": page("Home", links=["/same", "/changes", "/leaves"]), "/same": same, "/changes": page("Before 从前"), "/leaves": page("Leaves")}
    with serve(routes) as site:
        crawl(tmp_path, site.url())
        quiet = crawl(tmp_path, site.url(), refresh="all")
        assert (quiet.counts.kept, quiet.counts.extra["unchanged"]) == (0, 4)
        assert not list(tmp_path.glob("part-00001-*"))
        routes |= {"/": page("Home", links=["/same", "/changes", "/arrives"]), "/changes": page("After 之后"), "/arrives": page("Arrives")}
        del routes["/leaves"]
        second = crawl(tmp_path, site.url(), refresh="all")
        assert second.counts.dropped == {"http_404": 1}
        third = crawl(tmp_path, site.url(), refresh="all")
        assert third.counts.extra["gone"] == 1
        assert crawl(tmp_path, site.url(), refresh="none").state == "fresh"
    found = rows(tmp_path)
    assert {path: row["op"] for path, row in found.items()} == {"/": "new", "/same": "new", "/changes": "changed", "/arrives": "new"}  # links are no text
    assert "After 之后" in found["/changes"]["text"]


def test_what_is_due_is_visited_again_and_unchanged_pages_cost_no_body(tmp_path: Path) -> None:
    with serve({"/": page("Home", Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT")}) as site:
        crawl(tmp_path, site.url(), revisit_h=0, refresh="due")
        again = crawl(tmp_path, site.url(), refresh="due")
        assert (again.state, again.counts.extra["unchanged"], site.hits["/"]) == ("fresh", 1, 2)


# --- what a person is told ------------------------------------------------------------------------------------------------


def test_a_seed_that_does_not_resolve_is_told_at_once(tmp_path: Path, llmpipe: Callable) -> None:
    done = llmpipe("crawl", "http://no-such-host.invalid/", "--output", "out")
    assert done.returncode == 3
    assert "no-such-host.invalid does not resolve" in done.stderr and "hint:" in done.stderr


def test_a_private_seed_is_refused_with_a_way_out(tmp_path: Path, llmpipe: Callable) -> None:
    with serve({"/": page("Home")}) as site:
        done = llmpipe("crawl", site.url(), "--output", "out")
        assert (done.returncode, site.hits) == (3, {})
        assert "--set allow_private=true" in done.stderr and "127.0.0.1" in done.stderr
        done = llmpipe("crawl", site.url(), "--output", "out", "--set", "allow_private=[127.0.0.1]", "--set", "delay_s=0", "--json")
        assert (done.returncode, json.loads(done.stdout)["counts"]["kept"]) == (0, 1), done.stderr


def test_seeds_are_needed_and_must_be_urls(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no seeds"):
        crawl(tmp_path / "none")
    with pytest.raises(UsageError, match="ftp://a.example/"):
        crawl(tmp_path / "ftp", "ftp://a.example/")


def test_a_crawl_that_came_to_nothing_fails_and_can_be_tried_again(tmp_path: Path) -> None:
    routes: dict[str, Answer] = {}
    with serve(routes) as site:
        with pytest.raises(InputError, match="no page could be fetched.*http_404"):
            crawl(tmp_path, site.url())
        routes["/"] = page("Back 回来")
        assert crawl(tmp_path, site.url()).counts.kept == 1
    assert (set(rows(tmp_path)), (tmp_path / "dropped").exists() and any((tmp_path / "dropped").iterdir())) == ({"/"}, False)


@pytest.mark.parametrize("wrong", [{"max_pages": 0}, {"delay_s": -1}, {"num_threads": 0}, {"resolve": {"a": "b"}}, {"user_agent": "中文"}, {"timeout_s": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Config(**wrong)
