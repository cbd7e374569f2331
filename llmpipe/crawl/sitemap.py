"""Read sitemaps and their indexes: XML, plain text, RSS and Atom, gzipped or not.

    found = parse(body, "http://a.example/sitemap.xml")       # .urls .children

Never raises: a broken one gives what was read before the fault. Limits bound what a hostile one can cost.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO

from lxml import etree

from llmpipe.crawl.urls import resolve

MAX_URLS = 50_000
"""Of one sitemap, as the protocol has it."""
MAX_CHILDREN = 1_000
MAX_INFLATED_BYTES = 50 << 20


@dataclass(slots=True)
class Sitemap:
    urls: list[str] = field(default_factory=list)
    """Pages, absolute, in order, each once."""
    children: list[str] = field(default_factory=list)
    """Sitemaps that an index names."""
    lastmod: dict[str, float] = field(default_factory=dict)
    """Unix time of the last change, where it is told (`lastmod`; `updated` of Atom)."""


def parse(body: bytes, url: str) -> Sitemap:
    body = inflate(body)
    start = body[:200].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<"):
        return _xml(body, url)
    return Sitemap(list(dict.fromkeys(_text(body, url)))[:MAX_URLS])


def inflate(body: bytes) -> bytes:
    """Undo gzip (a `.xml.gz` served as a file), up to a limit; what comes before a fault is kept."""
    out: list[bytes] = []
    left = MAX_INFLATED_BYTES
    while body.startswith(b"\x1f\x8b") and left > 0:
        member = zlib.decompressobj(31)
        try:
            piece = member.decompress(body, left)
        except zlib.error:
            break
        out.append(piece)
        left -= len(piece)
        body = member.unused_data
    return b"".join(out) if out else body


def _xml(body: bytes, url: str) -> Sitemap:
    """Collect `<url><loc>` and `<sitemap><loc>`, `<item><link>` of RSS, `<entry><link href>` of Atom, by local name."""
    pages: dict[str, None] = {}
    children: dict[str, None] = {}
    lastmod: dict[str, float] = {}
    events = etree.iterparse(BytesIO(body), events=("end",), recover=True, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        for _, element in events:
            name = etree.QName(element).localname if isinstance(element.tag, str) else ""
            if name in ("url", "sitemap", "item", "entry"):
                into = children if name == "sitemap" else pages
                if (found := _location(element, url)) is not None:
                    into[found] = None
                    if (changed := _changed(element)) is not None:
                        lastmod[found] = changed
                element.clear()
                while element.getprevious() is not None and element.getparent() is not None:
                    del element.getparent()[0]
                if len(pages) >= MAX_URLS or len(children) >= MAX_CHILDREN:
                    break
    except (etree.XMLSyntaxError, ValueError):
        pass  # recover=True reads past most faults; at the others what was found so far stands
    return Sitemap(list(pages), list(children), lastmod)


def _changed(element: etree._Element) -> float | None:
    """Read a W3C date (`2026-11-24`, `2026-11-24T10:00Z`, `2026-11`) as Unix time; None for what is none."""
    for child in element:
        if isinstance(child.tag, str) and etree.QName(child).localname in ("lastmod", "updated"):
            text = (child.text or "").strip()[:40]
            try:
                time = datetime.fromisoformat(f"{text}-01" if re.fullmatch(r"\d{4}-\d\d", text) else text)
                return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
            except (ValueError, OverflowError):
                return None
    return None


def _location(element: etree._Element, url: str) -> str | None:
    for child in element:
        if isinstance(child.tag, str) and etree.QName(child).localname in ("loc", "link"):
            text = (child.text or "").strip() or (child.get("href") or "").strip()
            if text and child.get("rel", "alternate") == "alternate":
                return resolve(url, text)
    return None


def _text(body: bytes, url: str) -> list[str]:
    """One URL a line."""
    lines = body.decode("utf-8", "replace").lstrip("\ufeff").splitlines()[:MAX_URLS]
    found = [resolve(url, line) for line in lines if line.strip().startswith(("http://", "https://"))]
    return [f for f in found if f is not None]
