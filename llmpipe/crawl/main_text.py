"""Take the main text, author and date of a parsed page with trafilatura, at a fraction of what it costs as it comes.

    text = main_text(tree)                       # tree from html_tree.parse; it is changed
    found = metadata(tree, "http://a.example/")  # first: it reads what main_text removes

The results are trafilatura's own. Its time goes into XPath expressions that call a Python regex for every element, with
or without a class, and into `<span>`s, of which documentation is full (half of a Sphinx page). So each expression is
rewritten for the classes and ids that a page has, once per set of them, and spans that none could match are removed first.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from lxml import etree, html

MIN_KEPT_SHARE = 0.5
"""Extraction that keeps less of a page's prose than this is tried again for recall."""
MIN_PROSE_CHARS = 1_000
MAX_COMPILED = 100
"""Forms of an expression that are kept; pages of one site need a few."""

_TEST = re.compile(r"re:test\([^,]+, *'[^']*'")
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
            value[:] = [_Expression(found) if isinstance(found, etree.XPath) else found for found in value]
    return trafilatura


class _Expression:
    """An XPath expression that is rewritten for the attributes of the page at hand, and else stands as it was."""

    def __init__(self, plain: etree.XPath) -> None:
        self.plain, self.path = plain, plain.path
        self.pieces = _CLAUSE.split(self.path)
        self.clauses = [_clause(text) for text in _CLAUSE.findall(self.path)]
        self.compiled: OrderedDict[str, etree.XPath | None] = OrderedDict()

    def __call__(self, tree: html.HtmlElement) -> Any:
        values: _Values | None = getattr(_page, "values", None)
        if values is None or not self.clauses:
            return self.plain(tree)
        path = self.pieces[0] + "".join(clause.rewritten(values) + piece for clause, piece in zip(self.clauses, self.pieces[1:], strict=True))
        if path not in self.compiled:
            folded = _fold(path) if " and " not in self.path else path
            self.compiled[path] = etree.XPath(folded, namespaces={"re": "http://exslt.org/regular-expressions"}) if folded else None
            if len(self.compiled) > MAX_COMPILED:
                self.compiled.popitem(last=False)
        found = self.compiled[path]
        return [] if found is None else found(tree)


def _fold(path: str) -> str:
    """Leave out what is false, and the alternatives that can't match for it; nothing remains where none can."""
    while (shorter := _FALSE.sub("false()", _FALSE_OR.sub("", _OR_FALSE.sub("", path)))) != path:
        path = shorter
    return "|".join(way for way in _branches(path) if not re.search(r"\[\s*false\(\)\s*\]", way))


_OR_FALSE, _FALSE_OR, _FALSE = re.compile(r"\s+or\s+false\(\)"), re.compile(r"false\(\)\s+or\s+"), re.compile(r"(?<![\w:-])\(\s*false\(\)\s*\)")


@dataclass(frozen=True, slots=True)
class _Values:
    """The values of each attribute on a page, each once; and all of them, to look for words in."""

    by_name: dict[str, set[str]]
    joined: dict[str, str]

    @classmethod
    def of(cls, tree: html.HtmlElement) -> _Values:
        by_name: defaultdict[str, set[str]] = defaultdict(set)
        for element in tree.iter(etree.Element):
            for name, value in element.items():
                by_name[name].add(value)
            by_name[f"<{element.tag}>"].add("")
        return cls(dict(by_name), {name: "\n".join(by_name[name]) for name in ("class", "id", "style") if name in by_name})


_page = threading.local()


@contextmanager
def known_attributes(tree: html.HtmlElement) -> Iterator[None]:
    """Rewrite trafilatura's expressions for this page, in this thread, until the block ends."""
    _page.values = _Values.of(tree)
    try:
        yield
    finally:
        _page.values = None


@dataclass(frozen=True, slots=True)
class _Clause:
    """One test of attributes: `re:test(@id|@class, '…')`, `contains(@class, '…')`, `starts-with(@id, '…')`, `@id='…'`, `@id or`."""

    text: str
    names: tuple[str, ...]
    """Of attributes; an element's in `rel='me'`, which asks for a child's text."""
    words: tuple[str, ...]
    """One of these stands in any value that passes; an empty one is in all."""
    matches: Callable[[str], Any]
    folded: bool

    def rewritten(self, values: _Values) -> str:
        passing = sorted(value for name in self.names for value in self._passing(values, name))
        if not passing:
            return "false()"
        if not self.text.startswith("re:"):
            return self.text
        if len(self.names) == 1 and len(passing) <= 20 and all(len(value) < 200 and "'" not in value and value.isprintable() for value in passing):
            return "(" + " or ".join(f"@{self.names[0]}='{value}'" for value in passing) + ")"
        return f"(({' or '.join('@' + name for name in self.names)}) and {self.text})"

    def _passing(self, values: _Values, name: str) -> list[str]:
        if (joined := values.joined.get(name)) is not None:
            if self.folded:
                joined = joined.lower()
            if not any(word in joined for word in self.words):
                return []
        return [value for value in values.by_name.get(name, ()) if self.matches(value)]


_CLAUSE = re.compile(
    r"(?:re:test|contains|starts-with)\((?:@[\w-]+\|)*@[\w-]+, *'[^']*'(?:, *'i')?\)"
    r"|contains\(translate\(@[\w-]+, *'\w+', *'\w+'\), *'[^']*'\)|(?<![\w-])@[\w-]+ *= *'[^']*'|(?<![\w|(-])@[\w-]+(?=\s+or\b)|(?<![@\w-])\w+='[^']*'"
)
_LITERAL = re.compile(r"'([^']*)'")


def _clause(text: str) -> _Clause:
    names, literals = tuple(re.findall(r"@([\w-]+)", text)), _LITERAL.findall(text)
    if not names:
        return _Clause(text, (f"<{text.partition('=')[0]}>",), ("",), lambda value: True, False)
    if text.startswith("re:test"):
        folded = len(literals) > 1
        words = tuple(map(_word_in, _branches(literals[0])))
        pattern = re.compile(literals[0], re.I if folded else 0)
        return _Clause(text, names, tuple(w.lower() for w in words) if folded else words, lru_cache(maxsize=4_096)(pattern.search), folded)
    if "translate" in text:
        table = str.maketrans(literals[0], literals[1])
        return _Clause(text, names, ("",), lambda value: literals[2] in value.translate(table), False)
    if not literals:
        return _Clause(text, names, ("",), lambda value: True, False)
    literal = literals[0]
    if text.startswith("contains"):
        return _Clause(text, names, (literal,), lambda value: literal in value, False)
    if text.startswith("starts-with"):
        return _Clause(text, names, (literal,), lambda value: value.startswith(literal), False)
    return _Clause(text, names, (literal,), lambda value: value == literal, False)


def _branches(pattern: str) -> list[str]:
    """Split a regex or a path at the `|` that stand in no group."""
    found, depth = [""], 0
    for character in pattern:
        depth += (character in "([") - (character in ")]")
        if character == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return found


def _word_in(branch: str) -> str:
    """Give the longest run of plain characters that every match of a regex without top-level `|` holds."""
    if "\\" in branch:
        return ""
    branch = re.sub(r"\[[^]]*\][?*+]?", "\0", branch)
    while (outer := re.sub(r"\([^()]*\)[?*+]?", "\0", branch)) != branch:
        branch = outer
    branch = re.sub(r"[\^$.+]", "\0", re.sub(r".[?*]|\{.*?\}", "\0", branch))
    return max(branch.split("\0"), key=len)


def remove_dull_spans(tree: html.HtmlElement) -> None:
    """Remove each `<span>` that no expression of trafilatura or htmldate could match; what it holds stays in place."""
    found = False
    kept: dict[html.HtmlElement, int] = {}
    for span in tree.iter("span"):
        if all((name in ("class", "id") and _is_dull(value)) or name in _PLAIN_ATTRIBUTES for name, value in span.items()):
            parent = span.getparent()
            if parent.tag == "pre" and kept.get(parent, 0) < 2:  # `<pre>` reads as code if all it holds is one span that isn't empty
                kept[parent] = kept.get(parent, 0) + (span.text is not None or len(span) > 0)
                continue
            span.tag = _DULL
            found = True
    if found:
        etree.strip_tags(tree, _DULL)


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
            tested = {_LITERAL.findall(call)[0] for call in _TEST.findall(expression.path)}
            patterns |= tested
            words |= {literal.lower() for literal in _LITERAL.findall(expression.path)} - {t.lower() for t in tested}
    words.add("hljs")
    return tuple(sorted(w for w in words if len(w) > 2)), tuple(re.compile(p, re.I) for p in sorted(patterns) if len(p) > 2)
