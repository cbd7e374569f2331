"""URLs: lists of domains, addresses and patterns; words of which one is enough, and words of which it takes two."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmpipe.clean.judge import Recipe, judge
from llmpipe.clean.stage import Config
from llmpipe.clean.urls import UrlLists, load_urls
from llmpipe.errors import InputError
from tests.inprocess import run
from tests.material import bilingual_rows, chinese, english, write_docs_dir

LIST = """# blocked
bad.example   # and all below it
0.0.0.0 hosts.example
https://www.half.example/spam/
half.example/page?id=1
博客.example
re:/(?:tag|标签)/[^/]+$
"""


def reasons(tmp_path: Path, urls: list[str | None], **settings: object) -> list[str | None]:
    (tmp_path / "list.txt").write_text(LIST, encoding="utf-8")
    found = load_urls(UrlLists(block=[tmp_path / "list.txt"], **settings))
    return [r[0] if (r := found.reason(u)) else None for u in urls]


def test_domains_with_all_below_them_addresses_with_all_that_begin_with_them_and_patterns(tmp_path: Path):
    blocked = {
        "http://bad.example/": "urls.domain",
        "https://WWW.Bad.Example:8443/x": "urls.domain",
        "http://user:pw@deep.er.bad.example./?q=1": "urls.domain",
        "http://hosts.example": "urls.domain",
        "http://xn--5nqv22n.example/": None,
        "http://博客.example/文章": "urls.domain",
        "http://half.example/spam/1.html": "urls.address",
        "http://half.example/page?id=1&x=2": "urls.address",
        "http://ok.example/tag/news": "urls.pattern",
        "http://ok.example/标签/新闻": "urls.pattern",
    }
    kept = ["http://notbad.example/", "http://bad.example.org/", "http://half.example/", "http://half.example/spammer", "http://half.example/page?id=12", "http://ok.example/tag/news/1", "中文", "", None, "//", "http://"]
    assert reasons(tmp_path, [*blocked, *kept]) == [*blocked.values(), *[None] * len(kept)]


def test_what_is_allowed_stays_whatever_else_says(tmp_path: Path):
    (tmp_path / "allow.txt").write_text("good.bad.example\nhalf.example/spam/keep", encoding="utf-8")
    urls = ["http://good.bad.example/porn", "http://half.example/spam/keep/1", "http://bad.example/"]
    assert reasons(tmp_path, urls, allow=[tmp_path / "allow.txt"]) == [None, None, "urls.domain"]


def test_one_banned_word_is_enough_and_soft_words_take_two(tmp_path: Path):
    urls = {
        "http://x.example/porn/1": "urls.banned_word",
        "http://x.example/%70orn": "urls.banned_word",
        "http://popcorn.example/pornography-law": None,
        "http://x.example/casino-history": None,
        "http://casino.example/casino/casino": None,
        "http://online-casino.example/poker": "urls.soft_words",
        "http://x.example/caipiao/dubo": "urls.soft_words",
        "http://essex.example/assess/classic": None,
    }
    assert reasons(tmp_path, list(urls)) == list(urls.values())
    assert reasons(tmp_path, list(urls), builtin=False) == [None] * len(urls)
    assert reasons(tmp_path, ["http://x.example/好词/x"], banned_words=["好词"]) == ["urls.banned_word"]
    assert reasons(tmp_path, ["http://casino.example/"], max_soft_words=0) == ["urls.soft_words"]


def test_a_broken_pattern_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "list.txt").write_text("a.example\nre:(", encoding="utf-8")
    with pytest.raises(InputError, match=r"list.txt: line 2: '\(' is not a regular expression"):
        load_urls(UrlLists(block=[tmp_path / "list.txt"]))


def test_first_of_all_rules_and_independent_of_the_cut():
    texts, urls = [english(1), chinese(2), english(3)], ["http://a.example/xxx/1", None, "http://b.example/"]
    recipe = Recipe.of(Config(presets=[], urls=UrlLists(), filters=["encoding"]))
    together = judge(texts, recipe, urls)
    assert [r.rule if r else None for r in together.reasons] == ["urls.banned_word", None, None]
    assert [judge([t], recipe, [u]).reasons[0] for t, u in zip(texts, urls, strict=True)] == together.reasons


def test_a_list_that_changes_makes_the_output_stale_and_a_list_that_moves_does_not(tmp_path: Path):
    write_docs_dir(tmp_path / "docs", bilingual_rows(6))
    (tmp_path / "a.txt").write_text("http://docs.example/en/0.html\n", encoding="utf-8")
    wanted = f"urls.block=['{tmp_path}/a.txt']"
    first = run("clean", tmp_path / "docs", tmp_path / "out", wanted, "presets=[]")
    assert first.counts.dropped == {"urls.address": 1}
    (tmp_path / "b.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    assert run("clean", tmp_path / "docs", tmp_path / "out", f"urls.block=['{tmp_path}/b.txt']", "presets=[]").state == "fresh"
    (tmp_path / "a.txt").write_text("docs.example\n", encoding="utf-8")
    assert run("clean", tmp_path / "docs", tmp_path / "out", wanted, "presets=[]", dry_run=True).state == "stale"
