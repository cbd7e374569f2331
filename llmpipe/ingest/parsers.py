"""Take the text out of EPUB, DOCX and PDF files.

    PARSERS["epub"](body, limit=16 << 20)      # {"parts": ["chapter", …], "title": …, "author": …} or {"error": "encrypted"}

Each is a function of the file's bytes and runs in the sandbox. Zips are read in memory, member by member up to a limit:
nothing is unpacked, names lead nowhere, what a header says of sizes is not believed. XML with a document type is refused.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from lxml import etree

MAX_MEMBERS = 20_000
_FONTS = re.compile(r"\.(ttf|otf|woff2?|ttc)$", re.I)
Parsed = dict[str, Any]


class _Fault(Exception):
    """Why a file gives nothing; the first word becomes the rule."""


def _guarded(parse: Callable[..., Parsed]) -> Callable[..., Parsed]:
    def call(body: bytes, *, limit: int) -> Parsed:
        try:
            return parse(body, limit)
        except _Fault as fault:
            return {"error": str(fault)}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, etree.XMLSyntaxError, KeyError, ValueError, NotImplementedError, RuntimeError) as error:
            # what zipfile and lxml raise for broken files; RuntimeError: a member with a password
            return {"error": "encrypted" if "encrypted" in str(error) else f"broken_file: {type(error).__name__}: {str(error)[:150]}"}

    return call


# --- zips and XML ----------------------------------------------------------------------------------------------------


class _Zip:
    """A zip file whose members are read in memory, each and together up to a limit."""

    def __init__(self, body: bytes, limit: int) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(body))
        self.names = self._zip.namelist()
        if len(self.names) > MAX_MEMBERS:
            raise _Fault(f"too_long: {len(self.names)} members")
        self._limit, self._left = limit, 4 * limit

    def read(self, name: str) -> bytes:
        with self._zip.open(name) as member:
            body = member.read(self._limit + 1)
        self._left -= len(body)
        if len(body) > self._limit or self._left < 0:
            raise _Fault(f"too_long: {name[:100]}")
        return body

    def xml(self, name: str) -> Any:
        return parse_xml(self.read(name))


def parse_xml(body: bytes) -> Any:
    """Parse XML without entities, network or huge trees; a document type is a fault."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True)
    tree = etree.fromstring(body, parser)
    if tree.getroottree().docinfo.internalDTD is not None and tree.getroottree().docinfo.internalDTD.entities():
        raise _Fault("broken_file: it declares entities")
    return tree


def _local(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _named(tree: Any, name: str) -> Iterator[Any]:
    return (e for e in tree.iter() if _local(e) == name)


def _first(tree: Any, name: str) -> str | None:
    return next((text for e in _named(tree, name) if (text := " ".join("".join(e.itertext()).split()))), None)


def _language(tree: Any) -> str | None:
    """A BCP-47 code; `C` and `POSIX`, which tools write where no language is set, are none."""
    found = _first(tree, "language") or ""
    return found if re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*", found) else None


# --- EPUB ------------------------------------------------------------------------------------------------------------


def _epub(body: bytes, limit: int) -> Parsed:
    """Chapters in the order of the spine, each as text; the table of contents (nav) is left out."""
    from llmpipe.crawl import html_tree
    from llmpipe.crawl.decode import decode

    book = _Zip(body, limit)
    if "META-INF/encryption.xml" in book.names:
        hidden = [e.get("URI", "") for e in _named(book.xml("META-INF/encryption.xml"), "CipherReference")]
        if any(not _FONTS.search(uri) for uri in hidden):
            raise _Fault("encrypted")
    opf = next((e.get("full-path") for e in _named(book.xml("META-INF/container.xml"), "rootfile") if e.get("full-path")), None)
    if opf is None:
        raise _Fault("broken_file: no rootfile in META-INF/container.xml")
    package = book.xml(opf)
    items = {e.get("id"): e for e in _named(package, "item")}
    parts: list[str] = []
    missing = 0
    done: set[str] = set()
    for reference in _named(package, "itemref"):
        item = items.get(reference.get("idref"))
        if item is None or "nav" in (item.get("properties") or "").split():
            continue
        if not re.search(r"html|xml", item.get("media-type") or ""):
            continue
        name = posixpath.normpath(posixpath.join(posixpath.dirname(opf), unquote((item.get("href") or "").partition("#")[0])))
        if name in done:
            continue
        done.add(name)
        if name not in book.names:
            missing += 1
            continue
        decoded = decode(book.read(name), "application/xhtml+xml")
        tree = html_tree.parse(re.sub(r"^\s*<\?xml[^>]*\?>", "", decoded.text))
        text = html_tree.plain_text(tree) if tree is not None else ""
        if text:
            parts.append(text)
    metadata = next(_named(package, "metadata"), package)
    authors = [" ".join("".join(e.itertext()).split()) for e in _named(metadata, "creator")]
    return {
        "parts": parts,
        "title": _first(metadata, "title"),
        "author": ", ".join(a for a in authors if a) or None,
        "language": _language(metadata),
        "date": (_first(metadata, "date") or "")[:10] or None,
        "license": _first(metadata, "rights"),
        "missing": missing,
    }


# --- DOCX ------------------------------------------------------------------------------------------------------------


def _docx(body: bytes, limit: int) -> Parsed:
    """Paragraphs with headings on lines of their own, list items as `- `, rows of tables as `a | b`, notes at the end."""
    book = _Zip(body, limit)
    if "word/document.xml" not in book.names:
        raise _Fault("encrypted" if "EncryptedPackage" in book.names else "broken_file: no word/document.xml")
    blocks = _blocks(next(_named(book.xml("word/document.xml"), "body")))
    for name in ("word/footnotes.xml", "word/endnotes.xml"):
        if name in book.names:
            blocks += [text for note in _named(book.xml(name), "footnote" if "foot" in name else "endnote") for text in _blocks(note)]
    core = book.xml("docProps/core.xml") if "docProps/core.xml" in book.names else etree.Element("none")
    return {
        "parts": [re.sub(r"\n{3,}", "\n\n", "\n".join(blocks)).strip()],
        "title": _first(core, "title"),
        "author": _first(core, "creator"),
        "language": _language(core),
        "date": (_first(core, "created") or "")[:10] or None,
    }


def _blocks(parent: Any) -> list[str]:
    out: list[str] = []
    for element in parent:
        kind = _local(element)
        if kind == "p":
            text = _paragraph(element)
            style = next((_value(e) for e in _named(element, "pStyle")), "") or ""
            if text and re.match(r"(heading|title|标题|\d$)", style, re.I):
                out += ["", text, ""]
            elif text:
                out.append(f"- {text}" if any(True for _ in _named(element, "numPr")) else text)
        elif kind == "tbl":
            for row in (r for r in element.iter() if _local(r) == "tr" and next(a for a in r.iterancestors() if _local(a) == "tbl") is element):
                cells = [" ".join(b for b in _blocks(cell) if b) for cell in row if _local(cell) == "tc"]
                if any(cells):
                    out.append(" | ".join(c for c in cells if c))
        elif kind in ("sdt", "sdtContent", "ins", "customXml", "smartTag", "moveTo"):
            out += _blocks(element)
    return out


def _value(element: Any) -> str | None:
    return next((v for k, v in element.attrib.items() if k.rpartition("}")[2] == "val"), None)


def _paragraph(paragraph: Any) -> str:
    """The text of runs; what was deleted under revision, fallbacks of drawings and field codes left out."""
    out: list[str] = []

    def walk(element: Any) -> None:
        for child in element:
            kind = _local(child)
            if kind == "t":
                out.append("".join(child.itertext()))
            elif kind in ("tab", "ptab"):
                out.append("\t")
            elif kind in ("br", "cr"):
                out.append("\n")
            elif kind == "noBreakHyphen":
                out.append("-")
            elif kind not in ("Fallback", "del", "moveFrom", "pPr", "rPr", "instrText", "delText", "footnoteReference"):
                walk(child)
                if kind == "p":
                    out.append("\n")  # of a text box

    walk(paragraph)
    return "\n".join(line.strip() for line in "".join(out).split("\n")).strip()


# --- PDF -------------------------------------------------------------------------------------------------------------


def _pdf(body: bytes, limit: int) -> Parsed:
    """The text of pages in the order of their content, lines of a paragraph joined."""
    import logging

    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    parts: list[str] = []
    faults = size = 0
    try:
        reader = PdfReader(io.BytesIO(body))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _Fault("encrypted")
        num_pages = len(reader.pages)
        for n in range(num_pages):
            try:
                text = reflow(reader.pages[n].extract_text() or "")
            except (PyPdfError, ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, AssertionError, OSError, zlib.error, RecursionError, NotImplementedError):
                faults += 1  # a page that pypdf stumbles over; the others are read
                continue
            size += len(text)
            if size > limit:
                raise _Fault("too_long: its text")
            if text:
                parts.append(text)
        info = reader.metadata or {}
        return {
            "parts": ["\n\n".join(parts)] if parts else [],
            "title": _info(info, "/Title"),
            "author": _info(info, "/Author"),
            "date": _pdf_date(_info(info, "/CreationDate")),
            "missing": faults,
        } if parts or not faults else {"error": f"broken_file: none of {num_pages} pages can be read"}
    except DependencyError:
        raise _Fault("encrypted") from None
    except (PyPdfError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise _Fault(f"broken_file: {type(error).__name__}: {str(error)[:150]}") from None


def _info(info: Any, key: str) -> str | None:
    value = info.get(key)
    return " ".join(str(value).replace("\0", "").split()) or None if value is not None else None


def _pdf_date(text: str | None) -> str | None:
    match = re.match(r"(?:D:)?(\d{4})(\d\d)(\d\d)", text or "")
    return "-".join(match.groups()) if match else None


_ENDS = tuple(".!?。！？…:：;；”\"'」』)）")
_CJK = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f]"


_LEADER = re.compile(r"(?:\s?[.·…]){4,}\s?")
"""Of a table of contents, between a heading and its page."""


def reflow(text: str) -> str:
    """Join the lines of a page that the margin broke: a long line without an end of sentence goes on in the next.

    No space between Chinese characters; a word cut by a hyphen before a small letter becomes whole.
    """
    lines = [_LEADER.sub(" … ", line.strip()) for line in text.replace("\0", "").split("\n")]
    full = 0.7 * max((len(line) for line in lines), default=0)
    out: list[str] = []
    going_on = False
    for line in lines:
        if going_on and line:
            before = out[-1]
            if before.endswith("-") and before[-2:-1].isalpha() and line[0].islower():
                out[-1] = before[:-1] + line
            else:
                joined = re.match(_CJK, before[-1]) and re.match(_CJK, line)
                out[-1] = before + ("" if joined else " ") + line
        else:
            out.append(line)
        going_on = bool(line) and len(line) >= full and not line.endswith(_ENDS) and " … " not in line
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


PARSERS: dict[str, Callable[..., Parsed]] = {"epub": _guarded(_epub), "docx": _guarded(_docx), "pdf": _guarded(_pdf)}
