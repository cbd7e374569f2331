"""Read what stands in the tree of a page beside its main text: links, meta robots, title, language, plain text.

    tree = parse(text)
    links(tree, "http://example.org/a/"), meta_robots(tree), head(tree, url), plain_text(tree)

Takes any string, however broken; nothing here raises for what a page holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import unescape

from lxml import etree, html

from llmpipe.crawl.urls import resolve

_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_UNSEEN = re.compile(r"<!--.*?-->|<(script|style|template)\b.*?</\1\s*>", re.S | re.I)
_TAG = re.compile(r"</?[A-Za-z!][^<>]*>")
_SPACE = re.compile(r"\s+")
_ROBOTS_NAME = re.compile(r"robots|.*bot.*|.*crawler.*|.*extended|tdm-(reservation|policy)", re.I)
_AGENT_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_REFUSALS = {"noindex", "nofollow", "none", "noai", "noimageai"}
_META = re.compile(r"<meta\s([^<>]*)>", re.I)
_ATTRIBUTE = re.compile(r"""([a-z-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.I)
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*$")
_SKIPPED = {"script", "style", "noscript", "template", "svg", "math", "head", "iframe", "object", "select", "button"}
_BLOCKS = set(
    "address article aside blockquote caption center dd details dialog div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header "
    "hr legend li main nav ol option p pre section summary table tbody tfoot thead tr ul".split()
)
_AROUND_TEXT = {"nav", "aside", "header", "footer", "form", "iframe", "frame", "input", "button"}
_CHROME = re.compile(r"nav|menu|sidebar|footer|header|comment|share|social|related|breadcrumb|cookie|banner|advert|widget|toc\b", re.I)
_PROSE = etree.XPath(
    "//body//text()[not(ancestor::a or ancestor::script or ancestor::style or ancestor::noscript or ancestor::nav or ancestor::header or ancestor::footer"
    " or ancestor::aside or ancestor::form or ancestor::select or ancestor::button or ancestor::svg)]",
    smart_strings=False,
)
_TEXT = etree.XPath("//body//text()", smart_strings=False)
_HOLDS_BLOCKS = etree.XPath("boolean(.//table or .//dl or .//p[2] or .//ul or .//ol or .//pre or .//h1 or .//h2 or .//h3 or .//h4 or .//hr or .//div[2] or .//form or .//br[4])")
_OWN_PARTS = etree.XPath("tr | */tr | tr/td | */tr/td | tr/th | */tr/th | tbody | thead | tfoot")
# lxml.html chooses a class per tag in Python, for each element that is looked at: a tenth of the time of an extraction
_ONE_CLASS = etree.ElementDefaultClassLookup(element=html.HtmlElement)
MAX_HREF_CHARS = 8_192
MIN_REPEATED_CHARS = 25
MAX_FEEDS = 10


def parse(text: str) -> html.HtmlElement | None:
    """Parse HTML; None when there is no element in it, or when it nests deeper than libxml2 goes (2,048)."""
    text = _INVALID.sub("", text)
    if not text.strip():
        return None
    # huge_tree: without it the tree ends at depth 256, which pages of unclosed <font> and <table> do reach
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False, default_doctype=False, no_network=True, huge_tree=True)
    parser.set_element_class_lookup(_ONE_CLASS)
    try:
        tree = html.document_fromstring(text.encode("utf-8"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):
        return None
    return None if any("xcessive depth" in str(entry.message) for entry in parser.error_log) else tree


def strip_tags(text: str) -> str:
    """Give the text of a page that cannot be parsed."""
    text = _UNSEEN.sub(" ", _INVALID.sub("", text))
    lines = (squeeze(unescape(line)) for line in _TAG.sub("\n", text).split("\n"))
    return "\n".join(line for line in lines if line)


def links(tree: html.HtmlElement, url: str, *, encoding: str = "utf-8") -> list[tuple[str, bool]]:
    """List `(url, nofollow)` of the pages that a page links to: in document order, each once; nofollow if all its links are.

    URLs are absolute, http or https, and without fragment; `encoding` is the page's, which queries are written in.
    """
    base = _base(tree, url)
    found: dict[str, bool] = {}
    targets: dict[str, str | None] = {}
    for element in tree.iter("a", "area", "link", "iframe", "frame"):
        rel = (element.get("rel") or "").lower().split()
        if element.tag == "link" and not {"next", "prev"} & set(rel):
            continue
        href = element.get("src" if element.tag in ("iframe", "frame") else "href")
        page = href.partition("#")[0] if href else ""  # a page of reference links to many places of few others
        if not page or page.isspace():
            if not href or href.lstrip()[:1] == "#":
                continue
        if page not in targets:
            targets[page] = _absolute(base, page, encoding)
        target = targets[page]
        if target is not None:
            found[target] = found.get(target, True) and "nofollow" in rel
    return list(found.items())


def feeds(tree: html.HtmlElement, url: str) -> list[str]:
    """List the RSS and Atom feeds that a page's head names, absolute, each once."""
    base, found = _base(tree, url), {}
    for element in tree.iter("link"):
        kind = (element.get("type") or "").partition(";")[0].strip().lower()
        if kind in ("application/rss+xml", "application/atom+xml") and "alternate" in (element.get("rel") or "").lower().split():
            if (target := _absolute(base, element.get("href"))) is not None:
                found[target] = None
    return list(found)[:MAX_FEEDS]


def _absolute(base: str, href: str | None, encoding: str = "utf-8") -> str | None:
    if not href or len(href) > MAX_HREF_CHARS or href.lstrip()[:1] == "#":
        return None
    return resolve(base, href, encoding=encoding)


def _base(tree: html.HtmlElement, url: str) -> str:
    for element in tree.iter("base"):
        if href := element.get("href"):
            return _absolute(url, href) or url
    return url


def meta_robots(tree: html.HtmlElement) -> list[tuple[str, tuple[str, ...]]]:
    """List `(agent, directives)` in lower case: meta robots, those for one crawler (by a name like one, or by what they say), and tdm-reservation."""
    return _robots_of((element.get("name"), element.get("content")) for element in tree.iter("meta"))


def scan_meta_robots(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Do as `meta_robots` for a page that cannot be parsed: what it asks for still counts."""
    found = ({m[1].lower(): m[2] or m[3] or m[4] or "" for m in _ATTRIBUTE.finditer(meta[1])} for meta in _META.finditer(_UNSEEN.sub(" ", text)))
    return _robots_of((unescape(meta.get("name", "")), unescape(meta.get("content", ""))) for meta in found)


def _robots_of(metas: Iterable[tuple[str | None, str | None]]) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for raw, content in metas:
        name = (raw or "").strip().lower()
        if name and len(name) < 100:
            directives = tuple(d.strip().lower() for d in (content or "").split(",") if d.strip())
            if _ROBOTS_NAME.fullmatch(name) or (_REFUSALS.intersection(directives) and _AGENT_NAME.fullmatch(name)):
                found.append((name, directives))
    return found


@dataclass(frozen=True, slots=True)
class Head:
    title: str | None
    language: str | None
    """As the page declares it (BCP-47)."""
    license: str | None
    canonical: str | None


def head(tree: html.HtmlElement, url: str) -> Head:
    """Read title, declared language, license link and canonical URL."""
    base = _base(tree, url)
    canonical = license_url = None
    for element in tree.iter("link", "a"):
        rel = (element.get("rel") or "").lower().split()
        if "canonical" in rel and element.tag == "link":
            canonical = canonical or _absolute(base, element.get("href"))
        elif "license" in rel:
            license_url = license_url or _absolute(base, element.get("href"))
    return Head(_title(tree), _language(tree), license_url, canonical)


def _title(tree: html.HtmlElement) -> str | None:
    for tag in ("title", "h1"):
        for element in tree.iter(tag):
            if text := squeeze("".join(element.itertext()))[:1000]:
                return text
    return None


def _language(tree: html.HtmlElement) -> str | None:
    declared = [tree.get("lang"), tree.get("{http://www.w3.org/XML/1998/namespace}lang"), tree.get("xml:lang")]
    declared += [m.get("content") for m in tree.iter("meta") if (m.get("http-equiv") or "").lower() == "content-language"]
    return next((d.strip().replace("_", "-") for d in declared if d and _LANGUAGE.match(d.strip())), None)


def squeeze(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def is_bare(tree: html.HtmlElement) -> bool:
    """Whether a page is nothing but its text: no navigation, no forms, few links. So are manuals and old pages.

    There is nothing to strip from such a page, and heuristics made for articles lose half of it
    (on pages of pydoc: 5 of 20 KB of `re`).
    """
    linked = 0
    for element in tree.iter(etree.Element):
        if element.tag in _AROUND_TEXT or (element.tag in ("div", "section", "ul", "table") and _CHROME.search(f"{element.get('class')} {element.get('id')}")):
            return False
        if element.tag == "a" and element.get("href"):
            linked += len("".join(element.itertext()))
    return linked < 0.3 * len("".join(tree.itertext()))


def prose_exceeds(tree: html.HtmlElement, limit: float) -> bool:
    """Whether more than `limit` characters are neither links nor in navigation, headers, footers, forms and scripts."""
    # most pages are told by the length of all their text, which takes a hundredth of the time
    if sum(map(len, map(str.strip, _TEXT(tree)))) <= limit:
        return False
    return sum(len(squeeze(text)) for text in _PROSE(tree)) > limit


def unwrap_layout_tables(tree: html.HtmlElement) -> None:
    """Turn tables that only place things on the page into `<div>`; an extractor would make one line of each."""
    for table in list(tree.iter("table")):
        if table.get("role") == "presentation" or _HOLDS_BLOCKS(table):
            for part in _OWN_PARTS(table):
                part.tag = "div"
            table.tag = "div"


def plain_text(tree: html.HtmlElement) -> str:
    """Give all visible text: a line per block and `<br>`, spaces squeezed except in `<pre>`.

    A paragraph that stood on the page before is left out (class documentation repeats what is inherited).
    """
    blocks: list[str] = []
    seen: set[str] = set()
    inline: list[str] = []
    for piece in [*_pieces(tree), None]:
        if piece is not None:
            inline.append(piece)
            continue
        block = "".join(inline)
        inline = []
        if "\v" in block:  # preformatted
            block = block.replace("\v", "").strip("\n")
        else:
            block = "\n".join(squeeze(line) for line in block.split("\n"))
        if len(block) >= MIN_REPEATED_CHARS:
            if block in seen:
                continue
            seen.add(block)
        if block.strip():
            blocks.append(block)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(blocks)).strip()


def _pieces(tree: html.HtmlElement) -> Iterator[str | None]:
    """Yield pieces of text, and None at the edges of blocks. Walks events, not recursively: trees can be deep."""
    skipping = pre = 0
    for event, element in etree.iterwalk(tree, events=("start", "end")):
        tag = element.tag
        if event == "start":
            if skipping or tag in _SKIPPED:
                skipping += 1
                continue
            if tag == "br":
                yield "\n"
            elif tag in _BLOCKS:
                yield None
            if tag == "pre":
                pre += 1
                yield "\v"
            text = element.text
        elif skipping:
            skipping -= 1
            text = element.tail if not skipping else None
        else:
            pre -= tag == "pre"
            if tag in _BLOCKS:
                yield None
            elif tag in ("td", "th"):
                yield " "
            text = element.tail
        if text:
            yield text if pre else _SPACE.sub(" ", text)
