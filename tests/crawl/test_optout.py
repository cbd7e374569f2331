"""Rules of AI opt-outs: which words of a site count, where, and which of two wins; and what becomes of its pages."""

from __future__ import annotations

import gzip
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llmpipe.crawl import fetch
from llmpipe.crawl.extract import extract
from llmpipe.crawl.optout import AI_AGENTS, SitePolicy, parse_tdmrep, site_policy, training_preference
from llmpipe.crawl.stage import Config
from llmpipe.data.docs import meta_value
from tests.crawl.server import Answer, answer, page, serve
from tests.crawl.test_crawl_kill import documents, start
from tests.crawl.test_crawl_stage import crawl, dropped, path_of, rows

SITE = "http://site.example"


def policy(robots: str = "", ai_txt: str = "", tdmrep: str = "") -> SitePolicy:
    return site_policy(robots.encode(), ai_txt.encode(), tdmrep.encode(), agent="llmpipe/1.0 (+mailto:a@b.example)")


# --- robots.txt: agents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("robots", "path", "evidence"),
    [
        ("User-agent: GPTBot\nDisallow: /\n", "/河", "robots:GPTBot Disallow: /"),
        ("user-agent: gptbot/1.1\ndisallow: /a\n", "/a/b", "robots:GPTBot Disallow: /a"),
        ("User-agent: GPTBot\nDisallow: /a\n", "/b", ""),
        ("User-agent: GPTBot\nDisallow: /\nAllow: /新闻\n", "/%E6%96%B0%E9%97%BB/1", ""),
        ("User-agent: *\nDisallow: /\n", "/x", ""),  # `*` names nobody
        ("User-agent: *\nDisallow: /\nUser-agent: CCBot\nCrawl-delay: 5\n", "/x", ""),
        ("User-agent: Googlebot\nDisallow: /\n", "/x", ""),
        ("User-agent: Google-Extended\nUser-agent: ClaudeBot\nDisallow: /x\n", "/x", "robots:Google-Extended Disallow: /x"),
        ("User-agent: bytespider\nDisallow: /*.html$\n", "/x.html", "robots:Bytespider Disallow: /*.html$"),
        ("User-agent: meta-externalagent\nDisallow:\n", "/x", ""),
    ],
)
def test_a_group_that_names_an_ai_agent_speaks_for_training(robots: str, path: str, evidence: str) -> None:
    verdict = policy(robots).before(SITE + path)
    assert (verdict.value, verdict.optout) == (evidence, True if evidence else None)


def test_the_agents_are_the_users_to_choose() -> None:
    body = b"User-agent: NewsRobot\nDisallow: /\n\nUser-agent: GPTBot\nDisallow: /\n"
    assert site_policy(body, b"", b"", agent="llmpipe", ai_agents=["NewsRobot"]).before(SITE).value == "robots:NewsRobot Disallow: /"
    assert site_policy(body, b"", b"", agent="llmpipe", ai_agents=[]).before(SITE).optout is None
    with pytest.raises(ValueError, match=r"ai_agents: '\*'"):
        Config(ai_agents=["GPTBot", "*"])
    assert Config().ai_agents == list(AI_AGENTS)


# --- Content-Signal and Content-Usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("search=yes, ai-train=no", False),
        ("search=yes,ai-input=no,ai-train=yes", True),
        ("search=no, ai-input=no", None),
        ("train-ai=n", False),
        ("train-ai=y, search=n", True),
        ("train-ai;allow=n, train-ai=y", True),  # the last of a name counts, without its parameters
        ("train-ai=n;why=\"a, train-ai=y\"", False),  # a comma in a string cuts nothing
        ('train-ai=y, train-ai, search=n, search="n"', None),  # neither a boolean nor a string is a preference
        ("Train-AI=N", False),  # read in good faith
        ("=, ;;, train-ai=n", False),
        ("train-ai=maybe", None),
        ("train-ai=?0", None),
        ("train-genai=n", False),  # categories of earlier drafts
        ("tdm=n, search=y", False),
        ("all=n, train-ai=y", True),  # what is named itself wins over what holds it
        ("bots=y", True),
        ("ai-use=n", None),
        ("不训练", None),
        ("", None),
    ],
)
def test_reads_what_a_preference_says_of_training(text: str, expected: bool | None) -> None:
    assert training_preference(text) is expected


@pytest.mark.parametrize(
    ("robots", "path", "optout"),
    [
        ("User-agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /\n", "/", True),
        ("User-agent: *\nContent-Signal: ai-train=yes\n", "/", False),
        ("User-agent: *\nContent-Signal: search=no\n", "/", None),
        ("Content-Signal: ai-train=no\nUser-agent: other\nDisallow:\n", "/", True),  # before every group: to everybody
        ("User-agent: other\nContent-Signal: ai-train=no\n", "/", None),
        ("User-agent: GPTBot\nContent-Signal: ai-train=no\n", "/", True),
        ("User-agent: *\nContent-Usage: train-ai=n\nUser-agent: llmpipe\nContent-Usage: train-ai=y\n", "/", False),  # ours shadows *
        ("User-agent: *\nContent-Usage: train-ai=n\nUser-agent: llmpipe\nDisallow: /x\n", "/", True),  # but not by silence
        ("User-agent: *\nContent-Usage: / train-ai=n\nContent-Usage: /开放/ train-ai=y\n", "/%E5%BC%80%E6%94%BE/1", False),
        ("User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /ai-ok/\ttrain-ai=y\n", "/other", True),
        ("User-agent: *\nContent-Usage: /a train-ai=y\nContent-Usage: /a train-ai=n\n", "/a", True),  # equal paths: the stricter
        ("User-agent: *\nContent-Usage: /a* train-ai=n\n", "/b", None),
        ("User-agent: *\nContent-Signal: ai-train=yes\nContent-Usage: train-ai=n\n", "/", True),  # two kinds disagree
        ("User-agent: *\nContent-Usage: /\n", "/", None),
    ],
)
def test_lines_about_use_count_in_our_group_or_everybodys(robots: str, path: str, optout: bool | None) -> None:
    assert policy(robots).before(SITE + path).optout is optout


def test_a_line_about_use_leaves_disallow_as_it_was() -> None:
    from llmpipe.crawl.robots import parse

    robots = parse(b"User-agent: a\nContent-Signal: ai-train=no\nUser-agent: llmpipe\nLicense: https://l.example/rsl.xml\nDisallow: /x\n")
    assert not robots.rules("a").verdict(f"{SITE}/x").allowed and not robots.rules("llmpipe").verdict(f"{SITE}/x").allowed


def test_a_header_says_so_too_and_says_where_it_stood() -> None:
    verdict = policy("User-agent: *\nContent-Usage: train-ai=y\n").verdict(SITE, [("content-usage", "search=y"), ("Content-Usage", "train-ai=n")])
    assert (verdict.optout, verdict.value) == (True, "header Content-Usage: search=y, train-ai=n")
    allowed = policy().verdict(SITE, [("Content-Signal", "ai-train=yes, search=yes")])
    assert (allowed.word, allowed.value) == ("no", "header Content-Signal: ai-train=yes, search=yes")


# --- TDMRep -------------------------------------------------------------------------------------------------------------------

FILE = '[{"location": "/free/*.html$", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1, "tdm-policy": "https://a.example/p"}]'


@pytest.mark.parametrize(
    ("path", "headers", "meta", "value"),
    [
        ("/x", [], [], "tdmrep.json / tdm-reservation: 1, tdm-policy: https://a.example/p"),
        ("/free/河.html", [], [], "tdmrep.json /free/*.html$ tdm-reservation: 0"),  # the first that matches
        ("/x", [("TDM-Reservation", "0")], [], "header tdm-reservation: 0"),  # the header overrides the file
        ("/x", [("tdm-reservation", "1")], ["0"], "meta tdm-reservation: 0"),  # and the page overrides the header
        ("/free/a.html", [("tdm-reservation", "0")], ["1"], "meta tdm-reservation: 1"),
        ("/free/a.html", [("tdm-reservation", "1")], [], "header tdm-reservation: 1"),
        ("/x", [("tdm-reservation", "maybe")], ["2"], "tdmrep.json / tdm-reservation: 1, tdm-policy: https://a.example/p"),  # breaks the protocol: unset
    ],
)
def test_a_reservation_is_overridden_by_what_stands_nearer_to_the_page(path: str, headers: list, meta: list, value: str) -> None:
    site = policy(tdmrep=FILE)
    verdict = site.verdict(SITE + path, headers, [("tdm-reservation", (m,)) for m in meta])
    assert (verdict.value, verdict.optout) == (value, value.partition("reservation: ")[2].startswith("1"))
    assert site.before(SITE + path).optout is None and site.reserves(SITE + path) is (not path.startswith("/free"))  # only the page can tell


def test_rules_of_a_tdm_file_that_break_the_protocol_are_dropped() -> None:
    entries = [1, None, {"location": "/a"}, {"location": 3, "tdm-reservation": 1}, {"location": "/b", "tdm-reservation": True}, {"location": "/c", "tdm-reservation": [1]}]
    assert parse_tdmrep(json.dumps([*entries, {"location": "/d", "tdm-reservation": "1"}]).encode())[0].line == "/d tdm-reservation: 1"
    assert len(parse_tdmrep(json.dumps(entries).encode())) == 0
    assert len(parse_tdmrep(b'{"location": "/", "tdm-reservation": 1}')) == 1  # brackets forgotten


# --- X-Robots-Tag and meta elements ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "head", "word", "value"),
    [
        (["noai, noimageai"], "", "yes", "header X-Robots-Tag: noai"),
        (["noimageai"], "", "unclear", "header X-Robots-Tag: noimageai"),
        (["ccbot: noindex"], "", "yes", "header X-Robots-Tag: ccbot: noindex"),
        (["otherbot: noai", "unavailable_after: 25 Jun 2030"], "", "unclear", ""),
        (["llmpipe: noai"], "", "yes", "header X-Robots-Tag: llmpipe: noai"),
        (["GPTBot: nofollow"], "", "unclear", ""),
        (["noindex"], "", "unclear", ""),  # addressed to all: another rule's business
        ([], '<meta name="robots" content="NoAI, NoImageAI">', "yes", "meta robots: noai"),
        ([], '<meta name="GPTBot" content="noindex">', "yes", "meta gptbot: noindex"),
        ([], '<meta name="anthropic-ai" content="none">', "yes", "meta anthropic-ai: none"),
        ([], '<META CONTENT=noindex NAME=Bytespider>', "yes", "meta bytespider: noindex"),
        ([], '<meta name="googlebot" content="noindex">', "unclear", ""),
        ([], '<meta name="description" content="noai is a word, 不要">', "unclear", ""),
    ],
)
def test_directives_count_for_all_for_us_and_for_ai_agents(headers: list[str], head: str, word: str, value: str) -> None:
    meta = extract(f"<html><head>{head}</head><body><p>小镇 town</p></body></html>", SITE, "text/html").meta_robots
    verdict = policy().verdict(SITE, [("X-Robots-Tag", h) for h in headers], meta)
    assert (verdict.word, verdict.value) == (word, value)


def test_a_page_too_deep_to_parse_is_heard_all_the_same() -> None:
    deep = '<html><head><!-- <meta name="robots" content="all"> --><meta content=\'noai\' name="robots"></head><body>' + "<div>" * 5_000 + "河 river"
    found = extract(deep, SITE, "text/html")
    assert "river" in found.text and policy().verdict(SITE, [], found.meta_robots).value == "meta robots: noai"


# --- ai.txt and RSL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ai_txt", "path", "value"),
    [
        ("User-Agent: *\nDisallow: /\nDisallow: *\n", "/x", "ai.txt Disallow: /"),
        ("User-Agent: *\nDisallow: *.html\nAllow: *.txt\n", "/page.html?x", "ai.txt Disallow: *.html"),
        ("User-Agent: *\nDisallow: *.html\nAllow: *.txt\n", "/文章/", "ai.txt Disallow: *.html"),  # a page without a suffix is HTML
        ("User-Agent: *\nDisallow: *.html\nAllow: *.txt\n", "/notes.txt", ""),
        ("User-Agent: *\nDisallow: *.txt\nDisallow: *.jpg\n", "/page.php", ""),
        ("User-Agent: *\nDisallow: *.txt\n", "/a.txt/page", ""),  # a suffix stands at the end
        ("User-Agent: *\nDisallow: *.txt\n", "/notes.TXT", "ai.txt Disallow: *.txt"),
        ("User-Agent: *\nDisallow: *.php\n", "/page.php", ""),  # that is about code, not about the pages it makes
        ("User-Agent: *\nDisallow: /\nAllow: *.html\n", "/page", ""),  # the longest wins
        ("User-Agent: *\nAllow: /\nDisallow: /\n", "/page", "ai.txt Disallow: /"),  # contradictory: it does object
        ("User-Agent: *\nDisallow: /private/\n", "/public/", ""),
        ("User-Agent: GPTBot\nDisallow: /\n", "/x", "ai.txt Disallow: /"),
        ("User-Agent: *\nDisallow: /\nUser-Agent: llmpipe\nAllow: /\n", "/x", ""),
        ("<!doctype html><p>User-Agent: *\nDisallow: /\n", "/x", ""),
        ("# 关于 AI\nWe love robots. 欢迎。\n", "/x", ""),
    ],
)
def test_ai_txt_speaks_of_paths_and_types(ai_txt: str, path: str, value: str) -> None:
    assert policy(ai_txt=ai_txt).before(SITE + path).value == value


def test_a_licence_is_noted_and_decides_nothing() -> None:
    verdict = policy("License: https://l.example/rsl.xml\nUser-agent: *\nAllow: /\n").before(SITE)
    assert (verdict.optout, verdict.word, verdict.value) == (None, "unclear", "robots License: https://l.example/rsl.xml")


# --- hostile input -----------------------------------------------------------------------------------------------------------------


def hostile() -> Iterator[bytes]:
    yield from (b"", b"\0", b"\xff\xfe\xfd" * 1_000, b"[" * 200_000, b'{"a":' * 50_000, b"[" + b"9" * 200_000 + b"]", b'[{"location":"\\ud800","tdm-reservation":1}]')
    yield json.dumps([{"location": "*a" * 4_000 + "b", "tdm-reservation": 1}] * 3).encode()
    yield b"User-agent: GPTBot\nDisallow: /" + b"*a" * 100_000 + b"b\nContent-Usage: /" + b"*a" * 5_000 + b"b train-ai=n\n"
    yield b"".join(b"User-agent: %s\nDisallow: /a\n" % name.encode() for name in AI_AGENTS) * 400
    yield b"User-agent: *\n" + b"Content-Signal: ai-train=no\nLicense: x\n" * 10_000
    yield b"User-agent: *\nContent-Usage: " + b'"' * 9_999 + b"\nContent-Signal: " + b",;=" * 5_000 + b"\nContent-Usage: /\xff\xfe train-ai=n"


def test_nothing_raises_and_nothing_takes_long() -> None:
    url = SITE + "/" + "a" * 1_900
    began = time.perf_counter()
    for body in hostile():
        for files in ((body, b"", b""), (b"", body, b""), (b"", b"", body)):
            verdict = site_policy(*files, agent="llmpipe").verdict(url, [("Content-Usage", body.decode("latin-1")), ("X-Robots-Tag", body.decode("latin-1"))], [("robots", (body.decode("latin-1"),))])
            assert len(verdict.value) < 5_000
            verdict.value.encode()
    assert time.perf_counter() - began < 5


# --- whole crawls ----------------------------------------------------------------------------------------------------------------------

ROBOTS = """User-agent: *
Allow: /
Content-Usage: /consent/ train-ai=y

User-agent: GPTBot
User-agent: CCBot
Disallow: /closed/
"""
OBJECTIONS = {
    "/closed/x": "robots:GPTBot Disallow: /closed/",
    "/notes.txt": "ai.txt Disallow: *.txt",
    "/meta": "meta robots: noai",
    "/tag": "header X-Robots-Tag: ccbot: noindex",
    "/usage": "header Content-Usage: train-ai=n",
    "/tdm": "header tdm-reservation: 1",
    "/reserved/a": "tdmrep.json /reserved/ tdm-reservation: 1",
}


def site_with_objections() -> dict[str, Answer]:
    links = [*OBJECTIONS, "/reserved/lifted", "/consent/a", "/plain"]
    return {
        "/robots.txt": answer(body=ROBOTS, content_type="text/plain"),
        "/ai.txt": answer(body="User-Agent: *\nDisallow: *.txt\n", content_type="text/plain"),
        "/.well-known/tdmrep.json": answer(body='[{"location": "/reserved/", "tdm-reservation": 1}]', content_type="application/json"),
        "/": page("Start 开始", links=links),
        "/plain": page("Plain 平常"),
        "/closed/x": page("Closed 关闭"),
        "/notes.txt": answer(body="Notes. 笔记。", content_type="text/plain; charset=utf-8"),
        "/meta": page("Meta 元", links=["/behind"], head='<meta name="robots" content="noai">'),
        "/behind": page("Behind 后面"),
        "/tag": page("Tag 标签", X_Robots_Tag="ccbot: noindex"),
        "/usage": page("Usage 用途", Content_Usage="train-ai=n"),
        "/tdm": page("Reserved 保留", tdm_reservation="1"),
        "/reserved/a": page("Site-wide 全站"),
        "/reserved/lifted": page("Lifted 放开", head='<meta name="tdm-reservation" content="0">'),
        "/consent/a": page("Consent 同意"),
    }


def values(output: Path) -> dict[str, str]:
    found = [row for file in sorted((output / "dropped").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {path_of(row["url"]): row["value"] for row in found if row["rule"] == "ai_optout"}


def said(row: dict[str, Any]) -> tuple[str | None, str | None]:
    return meta_value(row["meta"], "ai_optout"), meta_value(row["meta"], "ai_optout_evidence")


def test_honor_leaves_pages_out_and_keeps_the_evidence(tmp_path: Path) -> None:
    with serve(site_with_objections()) as site:
        outcome = crawl(tmp_path, site.url())
    found = rows(tmp_path)
    assert set(found) == {"/", "/plain", "/behind", "/reserved/lifted", "/consent/a"}  # links of a page that objects are followed
    assert values(tmp_path) == OBJECTIONS and outcome.counts.dropped == {"ai_optout": len(OBJECTIONS)}
    assert (site.hits["/closed/x"], site.hits["/notes.txt"]) == (0, 0)  # known before the fetch
    assert (site.hits["/ai.txt"], site.hits["/.well-known/tdmrep.json"]) == (1, 1)
    assert said(found["/plain"]) == said(found["/"]) == (None, None)
    assert said(found["/consent/a"]) == ("no", "robots Content-Usage: /consent/ train-ai=y")
    assert said(found["/reserved/lifted"]) == ("no", "meta tdm-reservation: 0")
    raw = b"".join(gzip.decompress(file.read_bytes()) for file in (tmp_path / "warc").iterdir())
    assert "Plain 平常".encode() in raw and not any(word.encode() in raw for word in ("Meta 元", "Tag 标签", "Usage 用途", "Reserved 保留", "Site-wide"))
    written = [row for file in (tmp_path / "dropped").iterdir() for row in pq.read_table(file).to_pylist()]
    assert all(row["snippet"] == "" for row in written)


def test_record_keeps_the_pages_marked_and_ignore_asks_for_nothing(tmp_path: Path) -> None:
    with serve(site_with_objections()) as site:
        recorded = crawl(tmp_path / "record", site.url(), ai_optout="record")
        assert (site.hits["/ai.txt"], recorded.counts.dropped) == (1, {})
        crawl(tmp_path / "ignore", site.url(), ai_optout="ignore")
        assert (site.hits["/ai.txt"], site.hits["/.well-known/tdmrep.json"]) == (1, 1)
    found, ignored = rows(tmp_path / "record"), rows(tmp_path / "ignore")
    assert set(found) == set(ignored) and {"/closed/x", "/notes.txt"} <= set(found)
    assert {path: said(found[path]) for path in OBJECTIONS} == {path: ("yes", evidence) for path, evidence in OBJECTIONS.items()}
    assert all(said(row) == (None, None) for row in ignored.values())
    assert "元" in found["/meta"]["text"] and recorded.manifest.recipe["config"]["ai_optout"] == "record"


def test_a_site_that_objects_altogether_is_an_answer_not_a_failure(tmp_path: Path) -> None:
    with serve({"/robots.txt": answer(body="User-agent: ClaudeBot\nDisallow: /\n"), "/": page("Home 家")}) as site:
        outcome = crawl(tmp_path, site.url())
        assert (outcome.counts.kept, outcome.counts.dropped, site.hits["/"]) == (0, {"ai_optout": 1}, 0)
        assert values(tmp_path) == {"/": "robots:ClaudeBot Disallow: /"}
        assert crawl(tmp_path, site.url()).state == "fresh"


@pytest.mark.parametrize("how", ["header", "header with 304", "header with 304 to everything", "tdmrep.json with 304", "robots.txt"])
def test_a_page_that_objects_after_it_was_stored_is_taken_back(tmp_path: Path, how: str) -> None:
    objecting: dict[str, str] = {}

    def stored(handler: BaseHTTPRequestHandler) -> None:
        known = handler.headers.get("If-None-Match") == '"v1"' or (how.endswith("everything") and objecting)
        (answer(304, ETag='"v1"', **objecting) if known else page("Stored 存", ETag='"v1"', **objecting))(handler)

    plain = page("Stored 存")
    routes: dict[str, Answer] = {"/": page("Home 家", links=["/stored"]), "/stored": plain if how == "header" else stored}
    with serve(routes) as site:
        crawl(tmp_path, site.url())
        assert set(rows(tmp_path)) == {"/", "/stored"}
        if how.startswith("header"):
            objecting["X_Robots_Tag"] = "noai"
            routes["/stored"] = page("Stored 存", X_Robots_Tag="noai") if how == "header" else stored
        elif how.startswith("tdmrep"):
            routes["/.well-known/tdmrep.json"] = answer(body='[{"location": "/stored", "tdm-reservation": 1}]')
        else:
            routes["/robots.txt"] = answer(body="User-agent: CCBot\nDisallow: /stored\n")
        expire(tmp_path)
        second = crawl(tmp_path, site.url(), refresh="all")
        assert (second.counts.extra["gone"], second.counts.dropped) == (1, {"ai_optout": 1})
        assert set(rows(tmp_path)) == {"/"}
        third = crawl(tmp_path, site.url(), refresh="all")
        assert (third.counts.dropped, third.counts.extra.get("gone", 0)) == ({}, 0)  # said once


def test_a_page_whose_own_words_lift_its_headers_stays_through_revisits(tmp_path: Path) -> None:
    lifted = page("Lifted 放开", head='<meta name="tdm-reservation" content="0">', tdm_reservation="1", ETag='"v1"')

    def send(handler: BaseHTTPRequestHandler) -> None:
        (answer(304, tdm_reservation="1") if handler.headers.get("If-None-Match") else lifted)(handler)

    with serve({"/": send}) as site:
        crawl(tmp_path, site.url())
        again = crawl(tmp_path, site.url(), refresh="all", max_pages=1)
        assert (again.counts.kept, again.counts.dropped, again.counts.extra["unchanged"]) == (0, {}, 1)
    assert set(rows(tmp_path)) == {"/"}


def expire(output: Path) -> None:
    """Make all that was read of sites a day older."""
    with sqlite3.connect(output / "state" / "frontier.db") as db:
        db.execute("UPDATE robots SET fetched_at = fetched_at - 90000")
        db.execute("UPDATE policies SET fetched_at = fetched_at - 90000")
    db.close()


def test_the_files_are_kept_for_a_day_and_then_asked_for_conditionally(tmp_path: Path) -> None:
    answers: list[int] = []

    def ai_txt(handler: BaseHTTPRequestHandler) -> None:
        same = handler.headers.get("If-None-Match") == '"a"'
        answers.append(304 if same else 200)
        (answer(304) if same else answer(body="User-Agent: *\nDisallow: /x\n", content_type="text/plain", ETag='"a"'))(handler)

    with serve({"/ai.txt": ai_txt, "/": page("Home 家", links=["/x", "/y"]), "/x": page("X"), "/y": page("Y")}) as site:
        crawl(tmp_path, site.url())
        crawl(tmp_path, site.url(), refresh="all")
        assert answers == [200]
        expire(tmp_path)
        crawl(tmp_path, site.url(), refresh="all")
        assert answers == [200, 304]
        assert (site.hits["/x"], set(rows(tmp_path)), dropped(tmp_path)) == (0, {"/", "/y"}, {"/x": "ai_optout"})


@pytest.mark.parametrize("what", ["404", "500", "html", "huge", "deep", "binary", "drip", "cut", "loop"])
def test_a_file_that_fails_says_nothing_and_bars_nobody(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b"#")
            handler.wfile.flush()
            time.sleep(0.05)

    monkeypatch.setattr(fetch, "POLICY_TIMEOUT_S", 0.3)
    bad: Answer = {
        "404": answer(404),
        "500": answer(500, "[]"),
        "html": page("Not found 没有", head="<p>User-Agent: *\nDisallow: /\n"),
        "huge": answer(body=b"User-agent: *\nDisallow: /\n" + b"#" * 300_000),
        "deep": answer(body=b"[" * 100_000),
        "binary": answer(body=b"\0\xff\xfe" * 50, content_type="text/plain"),
        "drip": drip,
        "cut": answer(body=b'[{"location": "/", "tdm-res', Content_Length="900", Connection="close"),
        "loop": answer(302, Location="/ai.txt"),
    }[what]
    with serve({"/ai.txt": bad, "/.well-known/tdmrep.json": bad, "/": page("Home 家", links=["/b"]), "/b": page("B 乙")}) as site:
        crawl(tmp_path, site.url())
    assert set(rows(tmp_path)) == {"/", "/b"} and "小镇" in rows(tmp_path)["/b"]["text"]
    assert all(said(row) == (None, None) for row in rows(tmp_path).values())


def test_the_files_are_asked_for_politely_and_only_where_robots_lets_us(tmp_path: Path) -> None:
    arrivals: list[tuple[str, float]] = []

    def note(send: Answer) -> Answer:
        def noted(handler: BaseHTTPRequestHandler) -> None:
            arrivals.append((handler.path, time.monotonic()))
            send(handler)

        return noted

    robots = answer(body="User-agent: *\nDisallow: /.well-known/\nCrawl-delay: 0.1\n")
    with serve({"/robots.txt": note(robots), "/ai.txt": note(answer(404)), "/": note(page("Home 家", links=["/b"])), "/b": note(page("B"))}) as site:
        crawl(tmp_path, site.url(), delay_s=0.1, sitemaps=False)
        assert site.connections == 1 and site.hits["/.well-known/tdmrep.json"] == 0
    assert [path for path, _ in arrivals] == ["/robots.txt", "/ai.txt", "/", "/b"]
    assert min(later - before for (_, before), (_, later) in pairwise(arrivals)) >= 0.1


def test_what_sites_said_survives_sigkill(tmp_path: Path) -> None:
    links = [f"/p{n}" for n in range(60)]

    def late(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.05)
        page(f"Page 页 {handler.path}", links=[*links, "/p7x.txt"])(handler)

    routes: dict[str, Answer] = dict.fromkeys(links, late)
    with serve({"/ai.txt": answer(body="User-Agent: *\nDisallow: *.txt\n"), **routes}) as site:
        process = start(site, tmp_path)
        while process.poll() is None and site.hits.total() < 3:
            time.sleep(0.01)
        time.sleep(0.7)  # a commit every half second
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before = site.hits["/ai.txt"]
        assert start(site, tmp_path).wait(60) == 0
        assert (before, site.hits["/ai.txt"], site.hits["/.well-known/tdmrep.json"], site.hits["/p7x.txt"]) == (1, 1, 1, 0)
    assert len(documents(tmp_path)) == len(links) and dropped(tmp_path) == {"/p7x.txt": "ai_optout"}
