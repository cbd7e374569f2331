"""Rules of robots.txt: RFC 9309, and Google's reading where the RFC is silent."""

from __future__ import annotations

import random

import pytest

from llmpipe.crawl.robots import MAX_BYTES, page_directives, parse


def allowed(text: str | bytes, url: str, agent: str = "llmpipe") -> bool:
    body = text.encode() if isinstance(text, str) else text
    return parse(body).rules(agent).verdict(url if "://" in url else f"http://site.example{url}").allowed


@pytest.mark.parametrize(
    ("text", "url", "expected"),
    [
        ("", "/", True),
        ("user-agent: llmpipe\ndisallow: /\n", "/x", False),
        ("USER-AGENT: LLMPIPE\nDISALLOW: /\n", "/x", False),
        ("user-agent llmpipe\ndisallow /\n", "/x", False),  # blanks for the colon, as Google reads them
        ("user-agent: llmpipe\ndisalow: /\n", "/x", False),
        ("User-agent: llmpipe/2.1\nDisallow: /\n", "/x", False),
        ("User-agent: llmpipe-news\nDisallow: /\n", "/x", True),
        ("User-agent: llm\nDisallow: /\n", "/x", True),
        ("Disallow: /\nUser-agent: llmpipe\nAllow: /\n", "/x", True),  # a rule before any agent belongs to nobody
        ("User-agent: *\nDisallow: /\n\nUser-agent: llmpipe\nDisallow: /a\n", "/b", True),  # a group that names us shadows *
        ("User-agent: *\nDisallow: /\n\nUser-agent: llmpipe\nDisallow:\n", "/b", True),
        ("User-agent: * llmpipe\nDisallow: /\n", "/b", False),  # Google: `* x` is *
        ("User-agent: llmpipe\nDisallow: /a\n\nUser-agent: other\nDisallow: /\n\nUser-agent: llmpipe\nDisallow: /b\n", "/b", False),
        ("User-agent: other\nUser-agent: llmpipe\nDisallow: /a\n", "/a", False),
        ("User-agent: other\n\nUser-agent: llmpipe\nDisallow: /a\n", "/a", False),  # empty lines end no group
        ("User-agent: llmpipe\nSitemap: http://x/\nDisallow: /a\n", "/a", False),
        ("User-agent: llmpipe\nunknown: x\nDisallow: /a # why\n", "/a", False),
        ("User-agent: llmpipe\rDisallow: /a\r", "/a", False),
        ("User-agent: llmpipe\r\n \t Disallow :\t/a \r\n", "/a", False),
        ("\ufeffUser-agent: llmpipe\nDisallow: /a\n", "/a", False),
        ("User-agent: llmpipe\nDisallow: /p\nAllow: /page\n", "/page.html", True),
        ("User-agent: llmpipe\nAllow: /page\nDisallow: /page\n", "/page", True),  # equal length: the least restrictive
        ("User-agent: llmpipe\nDisallow: /page\nAllow: /p\n", "/page", False),
        ("User-agent: llmpipe\nDisallow: /Fish\n", "/fish", True),
        ("User-agent: llmpipe\nDisallow: fish\n", "/fish", True),  # no slash in front: matches nothing
        ("User-agent: llmpipe\nDisallow: /*.gif$\n", "/a/b.gif", False),
        ("User-agent: llmpipe\nDisallow: /*.gif$\n", "/a/b.gif?x", True),
        ("User-agent: llmpipe\nDisallow: /a*b*c\n", "/a1b2c3", False),
        ("User-agent: llmpipe\nDisallow: /a*b*c\n", "/a1c2b3", True),
        ("User-agent: llmpipe\nDisallow: /a**b\n", "/axxb", False),
        ("User-agent: llmpipe\nDisallow: /fish*\n", "/fishheads", False),
        ("User-agent: llmpipe\nDisallow: /a$b\n", "/a$bc", False),  # `$` is special only at the end
        ("User-agent: llmpipe\nDisallow: /*?\n", "/a?b", False),
        ("User-agent: llmpipe\nDisallow: /a/*/a$\n", "/a/a", True),  # pieces must not overlap
        ("User-agent: llmpipe\nAllow: /p\nDisallow: /\n", "/page", True),
        ("User-agent: llmpipe\nAllow: /$\nDisallow: /\n", "/", True),
        ("User-agent: llmpipe\nAllow: /$\nDisallow: /\n", "/page.htm", False),
        ("User-agent: llmpipe\nDisallow: /\n", "/robots.txt", True),
        ("User-agent: llmpipe\nAllow: /dir/index.html\nDisallow: /\n", "/dir/", True),
        ("User-agent: llmpipe\nAllow: /dir/index.html\nDisallow: /\n", "/dir/other", False),
        ("User-agent: llmpipe\nDisallow: /\nAllow: /foo/河\n", "/foo/%E6%B2%B3", True),
        ("User-agent: llmpipe\nDisallow: /foo/%e6%b2%b3\n", "/foo/%E6%B2%B3", False),
        ("User-agent: llmpipe\nDisallow: /foo/%62%61%7A\n", "/foo/baz", False),  # the RFC undoes escapes ...
        ("User-agent: llmpipe\nDisallow: /foo/baz\n", "/foo/%62az", False),
        ("User-agent: llmpipe\nDisallow: /\nAllow: /foo/%62%61%7A\n", "/foo/baz", False),  # ... Google doesn't: the stricter wins
        ("User-agent: llmpipe\nDisallow: /\nAllow: /foo/%62%61%7A\n", "/foo/%62%61%7A", True),
        ("User-agent: llmpipe\nDisallow: /a%2Fb\n", "/a/b", True),  # an escaped reserved character is another character
        ("User-agent: llmpipe\nDisallow: /x?q=中\n", "/x?q=%E4%B8%AD", False),
    ],
)
def test_decides_as_the_standard_says(text: str, url: str, expected: bool) -> None:
    assert allowed(text, url) is expected


def test_a_host_without_path_is_its_root() -> None:
    assert not allowed("User-agent: *\nDisallow: /\n", "http://site.example")


def test_names_the_line_that_decided() -> None:
    verdict = parse(b"User-agent: *\nDisallow: /private/\n").rules("llmpipe").verdict("http://s.example/private/x")
    assert (verdict.allowed, verdict.rule) == (False, "Disallow: /private/")


def test_reads_500_kib_and_drops_the_line_cut_there() -> None:
    head = b"User-agent: *\nDisallow: /first\n"
    filler = b"#" * (MAX_BYTES - len(head) - len(b"Allow: /first/a"))
    body = head + filler[:-1] + b"\n" + b"Allow: /first/a" + b"bc\nDisallow: /late\n"
    assert len(body) > MAX_BYTES
    assert not allowed(body, "/first/abc")  # `Allow: /first/a`, cut short, would have allowed it
    assert allowed(body, "/late")


def test_crawl_delay_is_lent_to_no_other_group() -> None:
    robots = parse(b"User-agent: slow\nCrawl-delay: 7\n\nUser-agent: *\nDisallow: /x\nCrawl-delay: 1e9\n")
    assert robots.rules("slow").crawl_delay_s == 7
    assert robots.rules("llmpipe").crawl_delay_s == 86_400
    assert parse(b"Crawl-delay: 5\n").rules("llmpipe").crawl_delay_s is None


def test_an_agent_is_named_or_not() -> None:
    robots = parse(b"User-agent: GPTBot\nDisallow: /\n\nUser-agent: *\nDisallow: /x\n")
    assert robots.rules("GPTBot", wildcard=False) is not None
    assert robots.rules("CCBot", wildcard=False) is None


def test_collects_sitemaps_outside_groups() -> None:
    assert parse(b"Sitemap: http://a.example/1.xml\nUser-agent: *\nDisallow:\nsitemap:http://a.example/2.xml").sitemaps == ["http://a.example/1.xml", "http://a.example/2.xml"]


def test_never_raises_and_matches_in_linear_time() -> None:
    rng = random.Random(0)
    words = [b"User-agent", b"Disallow", b"Allow", b":", b"*", b"$", b"/", b"\0", b"\xff\xfe", b"\n", b"\r", b" ", b"%", b"%zz", "河".encode(), b"#", b"Crawl-delay", b"nan", b"-1"]
    for _ in range(300):
        body = b"".join(rng.choices(words, k=60))
        allowed(body, "/a%zz?b")
    evil = b"User-agent: *\nDisallow: /" + b"*a" * 5_000 + b"b\n"
    assert allowed(evil, "/" + "a" * 5_000)


def test_page_directives_are_heard_by_the_agent_they_name() -> None:
    headers = [("X-Robots-Tag", "otherbot: noindex, nofollow"), ("x-robots-tag", "llmpipe: nosnippet, unavailable_after: 25 Jun 2030")]
    assert page_directives(headers, [("robots", ("noarchive",)), ("otherbot", ("none",))], "llmpipe/1") >= {"nosnippet", "noarchive"}
    assert not {"noindex", "nofollow"} & page_directives(headers, [("otherbot", ("none",))], "llmpipe/1")
    assert {"noindex", "nofollow"} <= page_directives([], [("robots", ("none",))], "llmpipe")
