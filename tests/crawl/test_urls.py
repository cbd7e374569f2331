"""Rules of URLs: what a link means, when two are one page, where a crawl may go."""

from __future__ import annotations

import pytest

from llmpipe.crawl.urls import Scope, canonical, parse_seed, registered_domain, resolve, trap

BASE = "http://a.example/dir/page.html?q=1"


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("other.html#part", "http://a.example/dir/other.html"),
        ("../up", "http://a.example/up"),
        ("../../../up", "http://a.example/up"),
        ("/x/./y/../z", "http://a.example/x/z"),
        ("http://a.example/x/../../y/%2e/z", "http://a.example/y/z"),
        ("//B.Example:80/", "http://b.example/"),
        ("https://b.example:443/x", "https://b.example/x"),
        ("https://b.example:8443/x", "https://b.example:8443/x"),
        ("?b=2&amp;c=3", "http://a.example/dir/page.html?b=2&c=3"),
        ("", BASE),
        ("  a b\n.html ", "http://a.example/dir/a%20b.html"),
        ("河.html?q=河", "http://a.example/dir/%E6%B2%B3.html?q=%E6%B2%B3"),
        ("http://例子.example/", "http://xn--fsqu00a.example/"),
        ("?q=%D6%D0%b9&e=", "http://a.example/dir/page.html?q=%D6%D0%b9&e="),
        ("\\windows\\path", "http://a.example/windows/path"),
        ("http://user:secret@b.example/", "http://b.example/"),
        ("http://b.example./", "http://b.example/"),
        ("http://[::1]:8000/x", "http://[::1]:8000/x"),
        ("javascript:alert(1)", None),
        ("mailto:a@b.example", None),
        ("data:text/html,x", None),
        ("http://[bad/", None),
        ("http://b.example:99999/", None),
        ("http://a..b/", None),
        ("http://exa mple/", None),
    ],
)
def test_resolves_links_as_browsers_do(href: str, expected: str | None) -> None:
    assert resolve(BASE, href) == expected


def test_writes_a_query_in_the_charset_of_its_page() -> None:
    assert resolve(BASE, "?q=中国", encoding="gb18030") == "http://a.example/dir/page.html?q=%D6%D0%B9%FA"
    assert resolve(BASE, "?q=中国", encoding="no-such") == "http://a.example/dir/page.html?q=%E4%B8%AD%E5%9B%BD"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.example/~x", "http://a.example/%7Ex"),
        ("http://a.example/%e6%b2%b3", "http://a.example/%E6%B2%B3"),
        ("http://a.example/p?a=1&utm_source=x&gclid=2", "http://a.example/p?a=1"),
        ("http://a.example/p?fbclid=x", "http://a.example/p"),
        ("http://a.example/p;jsessionid=0A1B2C", "http://a.example/p"),
        ("http://a.example/p?PHPSESSID=0123456789abcdef0123456789abcdef", "http://a.example/p"),
        ("http://a.example:80/", "http://a.example/"),
    ],
)
def test_one_page_has_one_key(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://a.example/p?q=%D6%D0", "http://a.example/p?q=%D6%D1"),
        ("http://a.example/p?cid=1", "http://a.example/p?cid=2"),
        ("http://a.example/p?b=", "http://a.example/p"),
        ("http://a.example/p?a=1&b=2", "http://a.example/p?b=2&a=1"),
        ("http://a.example/p/", "http://a.example/p"),
        ("http://a.example/a%2Fb", "http://a.example/a/b"),
        ("https://a.example/", "http://a.example/"),
        ("http://a.example/p?sid=7", "http://a.example/p?sid=8"),
    ],
)
def test_different_pages_keep_their_keys(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


def test_scope_by_host_domain_and_prefix() -> None:
    seeds = ["https://docs.example.co.uk/en/start.html"]
    cases = {
        "http://docs.example.co.uk/zh/": (True, True, False),
        "https://docs.example.co.uk/en/deep/x": (True, True, True),
        "https://docs.example.co.uk/english": (True, True, False),
        "https://www.example.co.uk/en/": (False, True, False),
        "https://docs.example.co.uk:8443/en/": (False, True, False),
        "https://other.co.uk/en/": (False, False, False),
        "https://docs.example.co.uk.evil.example/en/": (False, False, False),
    }
    for url, expected in cases.items():
        assert tuple(Scope.of(kind, seeds).allows(url) for kind in ("host", "domain", "prefix")) == expected, url


def test_registered_domain_of_names_without_one() -> None:
    assert registered_domain("www.example.com.cn") == "example.com.cn"
    assert registered_domain("127.0.0.1:8000") == "127.0.0.1:8000"
    assert registered_domain("pydoc.invalid") == "pydoc.invalid"


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/a/b/c", None),
        ("/2024/01/01/news", None),
        ("/x/x/x", "path_repeats"),
        ("/text/js/text/js/text/js/text/js", "path_repeats"),
        ("/" + "/".join(map(str, range(21))), "path_too_deep"),
        ("/" + "a" * 2_000, "url_too_long"),
    ],
)
def test_traps_are_told_by_rule(path: str, rule: str | None) -> None:
    found = trap("http://a.example" + path)
    assert (found[0] if found else None) == rule


def test_seeds_are_read_as_people_type_them() -> None:
    assert parse_seed("example.org/docs") == "https://example.org/docs"
    assert parse_seed("http://例子.example") == "http://xn--fsqu00a.example/"
    assert parse_seed("file:///etc/passwd") is None
