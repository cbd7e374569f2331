"""Read the articles of a MediaWiki dump: pages-articles*.xml, plain or compressed, multistream too.

    for item in wiki(unit, config): ...         # Row(key, file, values) or Drop(rule, place)

Namespace 0 without redirects. A bz2 dump of many streams is read from several places at once: a unit takes the streams
that begin in its range with a page. XML goes through expat piece by piece; a document type, which dumps don't have, ends
the file at once, so entities have nothing to multiply.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote
from xml.parsers import expat

from llmpipe.crawl.urls import canonical
from llmpipe.ingest.files import READ_ERRORS, File, open_file, open_raw, suffix_of
from llmpipe.ingest.mapping import Drop, Item, Row, broken
from llmpipe.ingest.units import Unit
from llmpipe.ingest.wikitext import Wiki, plain_text

if TYPE_CHECKING:
    from llmpipe.ingest.stage import Config

PIECE = 1 << 18
MAX_TOKEN_BYTES = 8 << 20
"""expat holds a tag or comment until it ends."""
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_FIELDS = {"title", "ns", "id", "timestamp", "model", "text", "base", "namespace"}
LICENSE = "https://creativecommons.org/licenses/by-sa/4.0/"
"""Of Wikipedia and its sister projects; other wikis have others, and their rows none."""


def wiki(unit: Unit, config: Config) -> Iterator[Item]:
    file = unit.files[0]
    pages, number = _Pages(config.max_record_bytes), 0
    try:
        with open_raw(file) if suffix_of(file) == ".bz2" else open_file(file) as stream:
            if unit.end is None:
                pieces: Iterator[bytes] = iter(lambda: stream.read(PIECE), b"")
            else:
                if unit.start:
                    pages.wiki = _site(file, config.max_record_bytes)
                    pages.feed(b"<mediawiki>")  # this unit begins in the middle
                pieces = _streams(stream, unit.start, unit.end)
            ended = unit.end is None
            for piece in pieces:
                ended = ended or not piece
                for page in pages.feed(piece):
                    number += 1
                    yield _article(page, pages.wiki, file, config)
                if pages.root not in (None, "mediawiki"):
                    yield Drop("unknown_format", file.name, value=f"<{pages.root}>, not a MediaWiki dump")
                    return
            if pages.depth > (0 if ended else 1):
                yield broken(_where(file, unit, number + 1), "the XML is cut off")
            elif pages.root is None and ended:
                yield Drop("no_text", file.name)
    except expat.ExpatError as error:
        late = pages.depth == 0 and pages.root == "mediawiki" and number
        if not (late and unit.end is not None):  # streams after </mediawiki> hold nothing
            rule = "unknown_format" if pages.root is None else "broken_file"
            yield Drop(rule, _where(file, unit, number + 1), value=f"not well-formed: {error}")
    except _Hostile as error:
        yield broken(_where(file, unit, number + 1), str(error))
    except READ_ERRORS as error:
        yield broken(_where(file, unit, number + 1), error)


def _where(file: File, unit: Unit, number: int) -> str:
    """The place of a fault: the n-th page from where the unit begins."""
    return f"{file.name}:{number}" if not unit.start else f"{file.name}@{unit.start}:{number}"


def _article(page: dict[str, str], wiki: Wiki, file: File, config: Config) -> Item:
    title = " ".join(page.get("title", "").split())
    place = f"{file.name}:{page.get('id', '?')}"
    if page.get("ns", "0").strip() != "0":
        return Drop("namespace", place, title, page["ns"], 0)
    if "redirect" in page:
        return Drop("redirect", place, title, page["redirect"])
    if page.get("model", "wikitext").strip() not in ("wikitext", ""):
        return Drop("content_model", place, title, page["model"])
    if "long" in page:
        return Drop("too_long", place, title, threshold=config.max_record_bytes)
    text, shown = plain_text(page.get("text", ""), wiki, variant=config.variant, title=title)
    if not text:
        return Drop("no_text", place, title)
    url = wiki.base + quote(title.replace(" ", "_"), safe="/:,;@!$*()'~&=+") if wiki.base else None
    values = {"text": text, "title": shown, "url": url, "language": wiki.language, "date": page.get("timestamp", "")[:10] or None}
    if re.search(r"\.(wikipedia|wiktionary|wikibooks|wikisource|wikiquote|wikivoyage|wikiversity|wikinews)\.org/", wiki.base):
        values["license"] = LICENSE
    values["meta"] = {"page_id": page.get("id"), "timestamp": page.get("timestamp")}
    return Row(canonical(url) if url else f"{file.key}#{page.get('id', title)}", file.key, values)


# --- streams of bz2 --------------------------------------------------------------------------------------------------


def _streams(stream: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the content of the bz2 streams of a unit: from the first that begins in [start, end) with a page (or at 0) up
    to the next one at or after `end`; b"" at the end of the file. Streams that begin within a page (as pbzip2 writes them)
    belong to the unit before."""
    position = start
    if start:
        for position in _candidates(stream, start, end):
            if _begins_page(stream, position):
                break
        else:
            return
    stream.seek(position)
    raw, offset = b"", position
    first = True
    while True:
        if not raw:
            raw = stream.read(PIECE)
            if not raw:
                yield b""
                return
        if not first and not raw.startswith(b"BZh"):
            raise OSError(f"{len(raw)} bytes after the last stream that are no bz2")
        if not first and offset >= end and _begins_page(stream, offset, keep=True):
            return
        reader = bz2.BZ2Decompressor()
        while not reader.eof:
            if reader.needs_input and not raw:
                raw = stream.read(PIECE)
                if not raw:
                    raise EOFError("the bz2 stream is cut off")
            piece = reader.decompress(raw if reader.needs_input else b"", PIECE)
            offset += len(raw)
            raw = b""
            if piece:
                yield piece
        raw = reader.unused_data
        offset -= len(raw)
        first = False


def _candidates(stream: BinaryIO, start: int, end: int) -> Iterator[int]:
    position = start
    while position < end:
        stream.seek(position)
        chunk = stream.read(PIECE + 9)
        for match in _STREAM.finditer(chunk):
            if position + match.start() < min(end, position + PIECE):
                yield position + match.start()
        position += PIECE


def _begins_page(stream: BinaryIO, offset: int, *, keep: bool = False) -> bool:
    """Whether the content of the stream at `offset` begins with a page. `keep`: leave the file where it was."""
    here = stream.tell()
    stream.seek(offset)
    reader = bz2.BZ2Decompressor()
    head = b""
    try:
        while len(head) < 64 and not reader.eof and (raw := stream.read(1 << 16)):
            head += reader.decompress(raw, 64)
            while len(head) < 64 and not reader.eof and not reader.needs_input:
                head += reader.decompress(b"", 64)
    except OSError:
        return False
    finally:
        if keep:
            stream.seek(here)
    return head.lstrip().startswith(b"<page>")


def _site(file: File, limit: int) -> Wiki:
    """Read what stands before the first page of a dump."""
    pages = _Pages(limit)
    with open_file(file) as stream:
        for _ in range(64):
            piece = stream.read(1 << 14)
            if not piece:
                break
            found = pages.feed(piece)
            if found or pages.wiki.base:
                break
    return pages.wiki


# --- XML -------------------------------------------------------------------------------------------------------------


class _Hostile(Exception):
    """What a dump never holds, and a bomb does."""


@dataclass(slots=True)
class _Pages:
    """Feed pieces of XML, get whole pages: a dict of title, ns, id, redirect, model, timestamp, text."""

    limit: int
    wiki: Wiki = field(default_factory=Wiki)
    root: str | None = None
    depth: int = 0
    _parser: expat.XMLParserType = field(init=False)
    _page: dict[str, str] | None = None
    _found: list[dict[str, str]] = field(default_factory=list)
    _take: str | None = None
    _text: list[str] = field(default_factory=list)
    _size: int = 0
    _key: int = 0
    _fed: int = 0

    def __post_init__(self) -> None:
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.buffer_size = 1 << 16
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, piece: bytes) -> list[dict[str, str]]:
        self._parser.Parse(piece, False)
        self._fed += len(piece)
        if self._fed - max(0, self._parser.CurrentByteIndex) > MAX_TOKEN_BYTES:
            raise _Hostile("a tag or comment without an end")
        found, self._found = self._found, []
        return found

    def _doctype(self, *_: object) -> None:
        raise _Hostile("it declares a document type, which no dump does")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self.depth == 0:
            self.root = name
            if (language := attributes.get("xml:lang")) and self.wiki.language is None:
                self.wiki.language = language
        self.depth += 1
        if self.depth > 20:
            raise _Hostile("its elements nest deeper than a dump's")
        if name == "page":
            self._page = {}
        elif name == "redirect" and self._page is not None:
            self._page["redirect"] = attributes.get("title", "")
        elif name in _FIELDS and (self._page is None or name not in self._page):
            self._take, self._text, self._size = name, [], 0
            self._key = int(k) if (k := attributes.get("key", "")).lstrip("-").isdigit() else 0

    def _characters(self, text: str) -> None:
        if self._take is not None:
            self._size += len(text)
            if self._size <= self.limit:
                self._text.append(text)
            elif self._page is not None:
                self._page["long"] = self._take
                self._text = []

    def _end(self, name: str) -> None:
        self.depth -= 1
        if name == self._take:
            self._value(name, "".join(self._text))
            self._take = None
        elif name == "page" and self._page is not None:
            self._found.append(self._page)
            self._page = None

    def _value(self, name: str, text: str) -> None:
        if self._page is not None:
            self._page[name] = text
        elif name == "base":
            self.wiki.base = text[: text.find("/wiki/") + 6] if "/wiki/" in text else text.rpartition("/")[0] + "/"
        elif name == "namespace" and self._key in (6, 14) and text:
            (self.wiki.files if self._key == 6 else self.wiki.categories).add(text.lower())
