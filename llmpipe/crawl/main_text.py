"""Take the main text, author and date of a parsed page with trafilatura, at a fraction of what it costs as it comes.

    text = main_text(tree)                       # tree from html_tree.parse; it is changed
    found = metadata(tree, "http://a.example/")  # first: it reads what main_text removes

The results are trafilatura's own. Its time goes into XPath expressions that call a Python regex for every element, with
or without a class, and into `<span>`s, of which documentation is full (half of a Sphinx page). So the expressions are
compiled again to ask only where there is an attribute, and spans that none of them could match are removed beforehand.
"""

from __future__ import annotations

import logging
import re
import sys
from functools import cache, lru_cache
from typing import Any

from lxml import etree, html

MIN_KEPT_SHARE = 0.5
"""Extraction that keeps less of a page's prose than this is tried again for recall."""
MIN_PROSE_CHARS = 1_000

_TEST = re.compile(r"re:test\((@\w+(?:\|@\w+)*), *'[^']*'(?:, *'\w*')?\)")
_LITERAL = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_DATE_CUES = ("date", "Date", "datum", "Datum", "eta", "time", "publish", "info", "post", "content", "line", "submit", "create", "publication", "autor", "fa-c", "fecha", "parution", "footer")
_PLAIN_ATTRIBUTES = frozenset({"title", "lang", "dir", "translate"})
_DULL = "dull"


def main_text(tree: html.HtmlElement) -> str:
    """Run trafilatura, for recall too if it keeps little of a page's prose."""
    from llmpipe.crawl import html_tree

    html_tree.unwrap_layout_tables(tree)
    text = _trafilatura(tree, recall=False)
    if html_tree.prose_exceeds(tree, max(MIN_PROSE_CHARS - 1, len(text) / MIN_KEPT_SHARE)):
        more = _trafilatura(tree, recall=True)
        if len(more) > 1.5 * len(text):
            text = more
    return text


def _trafilatura(tree: html.HtmlElement, *, recall: bool) -> str:
    found = prepare().bare_extraction(tree, fast=True, favor_recall=recall, include_comments=False, include_tables=True, deduplicate=False)
    # deduplicate=True keeps an LRU cache between pages: a page's text would depend on the worker that had it
    return (found.text or "").strip() if found is not None else ""


def metadata(tree: html.HtmlElement, url: str) -> Any:
    """Return trafilatura's `Document` with title, author, date and license."""
    return prepare().metadata.extract_metadata(tree, url, None, False)


@cache
def prepare() -> Any:
    """Import trafilatura and compile its expressions anew."""
    # language identification brings numpy, which doubles the time to start and is not used here
    with_langid = "py3langid" in sys.modules
    if not with_langid:
        sys.modules["py3langid"] = None  # type: ignore[assignment]
    try:
        import trafilatura
        import trafilatura.metadata
        from trafilatura import xpaths
    finally:
        if not with_langid:
            del sys.modules["py3langid"]
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it logs each odd page; our verdict is on the row
    for value in vars(xpaths).values():
        if isinstance(value, list):
            value[:] = [_guarded(found) if isinstance(found, etree.XPath) else found for found in value]
    return trafilatura


def _guarded(expression: etree.XPath) -> etree.XPath:
    """Compile an expression again so that `re:test(@class, …)` is called only for elements that have a class.

    The same elements match as long as no pattern matches the empty string, which none does.
    """
    source = _TEST.sub(lambda m: f"(({m[1].replace('|', ' or ')}) and {m[0]})", expression.path)
    return etree.XPath(source, namespaces={"re": "http://exslt.org/regular-expressions"}) if source != expression.path else expression


def remove_dull_spans(tree: html.HtmlElement) -> None:
    """Remove each `<span>` that no expression of trafilatura or htmldate could match; what it holds stays in place."""
    found = False
    for span in tree.iter("span"):
        if all((name in ("class", "id") and _is_dull(value)) or name in _PLAIN_ATTRIBUTES for name, value in span.items()):
            parent = span.getparent()
            if parent is not None and parent.tag == "pre" and not _may_go(span):
                continue
            span.tag = _DULL
            found = True
    if found:
        etree.strip_tags(tree, _DULL)


def _may_go(span: html.HtmlElement) -> bool:
    """Whether `<pre>` looks the same without this child: it reads as code if all it holds is one span."""
    kept = 0
    for before in span.itersiblings(preceding=True):
        kept += before.tag != _DULL and (before.text is not None or len(before) > 0)
        if kept == 2:
            return True
    return False


@lru_cache(maxsize=4_096)
def _is_dull(value: str) -> bool:
    words, patterns = _cues()
    folded = value.lower()
    return len(value) < 200 and not any(word in folded for word in words) and not any(pattern.search(value) for pattern in patterns)


@cache
def _cues() -> tuple[tuple[str, ...], tuple[re.Pattern[str], ...]]:
    """Every literal in trafilatura's expressions, as a word in lower case and, of regexes, as a pattern."""
    prepare()
    from trafilatura import xpaths

    words, patterns = {cue.lower() for cue in _DATE_CUES}, set()
    for value in vars(xpaths).values():
        for expression in value if isinstance(value, list) else ():
            tested = {literal for call in _TEST.finditer(expression.path) for literal, _ in _LITERAL.findall(call[0])}
            patterns |= tested
            words |= {(a or b).lower() for a, b in _LITERAL.findall(expression.path)} - {t.lower() for t in tested}
    words.add("hljs")
    return tuple(sorted(w for w in words if len(w) > 2)), tuple(re.compile(p, re.I) for p in sorted(patterns) if len(p) > 2)
