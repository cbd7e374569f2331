"""Pages give text, links and verdicts; pages that would hang or kill an extractor give a result all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from llmpipe.crawl.extract import ExtractPool, Link, extract
from tests.material import chinese, english

URL = "http://x.example/a/b.html"


def page(body: str, head: str = "") -> bytes:
    return f'<!DOCTYPE html><html lang="zh-CN"><head><title>标题 Title</title>{head}</head><body>{body}</body></html>'.encode()


def article(seed: int = 1) -> str:
    return f"<nav><ul><li><a href='/x'>Home 首页</a></li></ul></nav><article><h1>头 H</h1><p>{chinese(seed)}</p><p>{english(seed)}</p></article><footer>copyright 版权</footer>"


def test_main_text_without_navigation():
    found = extract(page(article()), URL, "text/html")
    assert chinese(1) in found.text and english(1) in found.text
    assert "首页" not in found.text and "版权" not in found.text
    assert (found.title, found.language, found.extractor, found.encoding, found.error) == ("标题 Title", "zh-CN", "trafilatura", "utf-8", None)


def test_links_are_absolute_in_order_and_once():
    head = '<base href="/base/"><link rel="canonical" href="/canon"><link rel=license href="https://l.example/cc">'
    body = """<a href="one">1</a><a href=" two#frag ">2</a><a href="one#x" rel=nofollow>1</a><a rel="ugc NoFollow" href="//y.example/三">3</a>
      <a href="javascript:x()">j</a><a href="mailto:a@b">m</a><a href="#top">t</a><a href="http://[">bad</a><map><area href="four"></map><a>none</a>"""
    found = extract(page(body, head), URL, "text/html")
    assert found.links == [
        Link("http://x.example/base/one", False),
        Link("http://x.example/base/two", False),
        Link("http://y.example/%E4%B8%89", True),
        Link("http://x.example/base/four", False),
    ]
    assert (found.canonical, found.license) == ("http://x.example/canon", "https://l.example/cc")


def test_meta_robots_with_their_agents():
    head = '<meta name="ROBOTS" content="NoIndex, nofollow"><meta name="googlebot" content="noarchive"><meta name="tdm-reservation" content="1"><meta name="author" content="A">'
    assert extract(page("x", head), URL, "text/html").meta_robots == [("robots", ("noindex", "nofollow")), ("googlebot", ("noarchive",)), ("tdm-reservation", ("1",))]


def test_old_manuals_keep_their_text_and_its_lines():
    entries = "".join(f"<dl><dt><strong>name{n}</strong>(self)</dt><dd><code>{english(n, 3)}<br>\n{chinese(n, 3)}</code></dd></dl>" for n in range(40))
    layout = f"<table width=100%><tr><td colspan=3>&nbsp;<br><strong>Classes</strong></td></tr><tr><td>&nbsp;</td><td width='100%'>{entries}</td></tr></table>"
    found = extract(page(f"<p><code>{english(99)}</code></p>{layout}"), URL, "text/html")
    lines = found.text.split("\n")
    assert english(99) in lines
    assert all(english(n, 3) in lines and chinese(n, 3) in lines for n in range(40))


def test_author_and_date_only_when_asked():
    body = page(article(), '<meta name="author" content="李 白"><meta property="article:published_time" content="2024-02-03">')
    assert (extract(body, URL, "text/html").author, extract(body, URL, "text/html").date) == (None, None)
    found = extract(body, URL, "text/html", metadata=True)
    assert (found.author, found.date) == ("李 白", "2024-02-03")
    assert found.text == extract(body, URL, "text/html").text


def test_plain_text_and_markdown_pass_through():
    assert extract("第一行\r\nline <b>two</b>\0".encode("gbk"), URL, "text/plain").text == "第一行\nline <b>two</b>"
    found = extract("# 标题 T\n\ntext".encode(), URL, "text/markdown; charset=utf-8")
    assert (found.text, found.title, found.extractor) == ("# 标题 T\n\ntext", "标题 T", "text")


HOSTILE = {
    "deep": "<div>" * 100_000 + "深 deep" + "</div>" * 100_000,
    "unclosed": "<table><tr><td>" * 20_000 + "深 cell",
    "spans": "<table><tr><td colspan=9007199254740991 rowspan=999999999999>格 cell</td></tr></table>" * 500,
    "entities": '<!DOCTYPE html [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><body>&b;&b; <p>文 text</p>',
    "nul": "<p>空\0a\0</p>" * 50,
    "surrogate": "<p>&#xD800; &#0; &#x110000; 文</p>",
    "no markup": "文",
    "nothing": "",
    "script": "<script>" * 1000 + "文",
}


def test_hostile_pages_end_as_results():
    with ExtractPool(2, timeout_s=20) as pool:
        for key, text in HOSTILE.items():
            pool.submit(key, text, URL, "text/html")
        pool.submit("good", page(article()), URL, "text/html")
        found = collect(pool)
    assert sorted(found) == sorted([*HOSTILE, "good"])
    assert chinese(1) in found["good"].text
    assert "深" in found["deep"].text and "深" in found["unclosed"].text and "文" in found["entities"].text
    assert pool.pending == pool.pending_bytes == 0
    for result in found.values():
        result.text.encode("utf-8")


def collect(pool: ExtractPool) -> dict:
    found = {}
    while pool.pending:
        for result in pool.poll(1.0):
            assert result.key not in found
            found[result.key] = result
    return found


def test_a_page_that_hangs_or_bloats_costs_its_worker_and_nothing_else():
    hang = "<div " + " ".join(f"a{n}=1" for n in range(60_000)) + ">慢 slow</div>"  # libxml2 compares each attribute with all before it
    with ExtractPool(1, timeout_s=0.7) as pool:
        pool.submit("hang", hang, URL, "text/html")
        pool.submit("next", page(article(3)), URL, "text/html")
        found = collect(pool)
    assert found["hang"].error == "timeout"
    assert chinese(3) in found["next"].text and found["next"].error is None
    with ExtractPool(1, max_rss_bytes=48 << 20) as pool:
        pool.submit("big", page("<p>大 <b>big</b></p>" * 400_000), URL, "text/html")
        pool.submit("next", page(article(4)), URL, "text/html")
        found = collect(pool)
    assert found["big"].error is not None
    assert chinese(4) in found["next"].text


def test_killed_workers_are_replaced_and_their_pages_tried_again():
    with ExtractPool(2) as pool:
        found = {}
        for n in range(30):
            pool.submit(str(n), page(article(n)), URL, "text/html")
        for _ in range(5):
            found.update((r.key, r) for r in pool.poll(1.0))
            os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        found.update(collect(pool))
    assert sorted(found, key=int) == [str(n) for n in range(30)]
    assert all(chinese(n) in found[str(n)].text for n in range(30))


def test_results_do_not_depend_on_workers():
    pages = [page(article(n % 4)) for n in range(8)]
    with ExtractPool(2) as pool:
        for n, body in enumerate(pages):
            pool.submit(str(n), body, URL, "text/html")
        found = collect(pool)
    for n, body in enumerate(pages):
        assert found[str(n)].text == extract(body, URL, "text/html").text


def test_workers_die_with_their_parent(tmp_path):
    code = "import sys, time; from llmpipe.crawl.extract import ExtractPool; p = ExtractPool(2); p.start(); print(*[w.process.pid for w in p._workers], flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_rewritten_expressions_find_what_trafilaturas_own_find():
    from trafilatura import xpaths

    from llmpipe.crawl import html_tree, main_text

    main_text.prepare()
    classes = ["entry-title", "post-meta", "sidebar left", "comment-list", "Commentary", "it's", 'say "so"', "作者 author", "article ", "row", "fulltext", "FullText wide", "", "x\ny hidden"]
    blocks = "".join(
        f'<{tag} class="{c.replace(chr(34), "&quot;")}" id="{i}-{["nav", "comments", "footer", "zuozhe", "main"][i % 5]}" {extra}>'
        f'<h1 class="headline">标题</h1><a href="/tag/{i}" rel="author">{chinese(i, 1)}</a><p style="display:none">{english(i, 1)}</p></{tag}>'
        for i, (c, tag, extra) in enumerate(
            zip(classes, ["div", "section", "ul", "p", "details", "span", "article"] * 2, ['role="Navigation"', 'itemprop="author"', "data-lp-replacement-content", "aria-hidden=true"] * 4, strict=False)
        )
    )
    pages = ["<p>bare 素</p>", blocks, f"<main><author>李白</author>{blocks[: len(blocks) // 2]}</main><time>2024-01-02</time>", article()]
    expressions = [e for value in vars(xpaths).values() if isinstance(value, list) for e in value]
    compared = matched = 0
    for text in pages:
        tree = html_tree.parse(page(text).decode())
        with main_text.known_attributes(tree):
            for expression in expressions:
                found = expression(tree)
                assert found == expression.plain(tree), expression.path
                compared, matched = compared + 1, matched + len(found)
    assert compared == 4 * len(expressions) > 100 and matched > 50
    assert expressions[0](tree) == expressions[0].plain(tree)  # and outside of the block they are what they were


def test_text_is_the_same_without_the_spans_of_highlighting():
    from llmpipe.crawl import html_tree, main_text

    code = '<div class="highlight"><pre><span></span><span class="kn">import</span> <span class="nn">os</span>\n<span class="c1"># 注</span></pre></div><pre><span class="k">one</span></pre>'
    kept = '<span class="byline">作者 李白</span><span id="share-box">share</span><span style="display:none">hidden 隐</span><span data-x="1">x</span>'
    body = f'<article><h1>头</h1><p>{chinese(5)} <span class="pre">{english(6, 3)}</span></p>{code}<p>{english(5)}<span>{chinese(6, 3)}</span></p>{kept}</article>'
    tree, plain = (html_tree.parse(page(body).decode()) for _ in range(2))
    main_text.remove_dull_spans(tree)
    left = [(span.get("class"), span.text) for span in tree.iter("span")]
    assert left == [(None, None), ("kn", "import"), ("nn", "os"), ("k", "one"), ("byline", "作者 李白"), (None, "share"), (None, "hidden 隐"), (None, "x")]
    assert main_text.main_text(tree) == main_text.main_text(plain)


def test_workers_start_when_there_is_a_page_and_are_replaced_without_loss(monkeypatch):
    from llmpipe.crawl import extract as module

    monkeypatch.setattr(module, "MAX_DOCUMENTS", 3)
    with ExtractPool(2) as pool:
        assert pool._workers == [] and pool.poll(0.0) == []
        pool.submit("first", page(article(0)), URL, "text/html")
        assert len(pool._workers) == 1  # one page needs one
        for n in range(20):
            pool.submit(str(n), page(article(n)), URL, "text/html")
        found = collect(pool)
    assert len(found) == 21 and all(r.error is None and r.extractor == "trafilatura" for r in found.values())


def test_more_hostile_pages_end_as_results():
    pages = {
        "attributes": "<p " + " ".join(f"x{n}='{n}'" for n in range(3_000)) + ">文 text</p>",
        "classes": "".join(f"<div class='c{n} comment-{n} nav{n}' id='share{n}'>文{n}</div>" for n in range(5_000)),
        "line": f"<p>{'长 long ' * 1_200_000}</p>",
        "backtracking": f"<p class='{'a-' * 50_000}!'>{'(' * 20_000} {'2024-' * 20_000} 文</p>",
        "quotes": "<div class=\"'&quot;[1]|//*\" id=\"');\">文 text</div>",
    }  # fmt: skip
    with ExtractPool(2, timeout_s=20, metadata=True) as pool:
        for key, text in pages.items():
            pool.submit(key, text, URL, "text/html")
        found = collect(pool)
    assert sorted(found) == sorted(pages)
    assert all("文" in found[key].text or "长" in found[key].text for key in pages)


def test_metadata_names_the_site_and_its_tags() -> None:
    head = '<meta property="og:site_name" content="River News 河报"><meta name="keywords" content="river, 河">'
    text = "".join(f"<p>Paragraph {n} tells of rivers. 第{n}段讲河流。</p>" for n in range(20))
    page = extract(f"<html><head><title>T</title>{head}</head><body><article>{text}</article></body></html>", "http://a.example/", "text/html", metadata=True)
    assert (page.site_name, page.tags, page.error) == ("River News 河报", ["river, 河"], None)
    assert page.text.count("\n") == 19
