"""Read text, Markdown and HTML files, and the records of WARC, WET and WACZ.

    for item in warc(unit, config): ...         # Row(key, file, values) or Drop(rule, place)

HTML is extracted in a process that may be killed (see crawl/extract.py); text is decoded whatever its encoding.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from llmpipe.errors import InputError
from llmpipe.ingest.files import READ_ERRORS, File, open_file, open_raw, read_lines, read_whole
from llmpipe.ingest.mapping import Drop, Item, Row, broken
from llmpipe.ingest.units import Unit

if TYPE_CHECKING:
    from llmpipe.crawl.extract import Extracted
    from llmpipe.crawl.warc import WarcRecord
    from llmpipe.ingest.stage import Config

_MEDIA_TYPES = {"html": "text/html", "markdown": "text/markdown", "text": "text/plain"}
_BINARY = (b"%PDF-", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff")


# --- text and Markdown ----------------------------------------------------------------------------------------------


def text(unit: Unit, config: Config) -> Iterator[Item]:
    """Read small files whole, or cut one at the lines that match `split`."""
    if config.split and unit.format == "text":
        yield from _split_text(unit, config)
        return
    for file in unit.files:
        body = _body(file, config)
        yield body if isinstance(body, Drop) else _text_row(body, file, None, config, unit.format)


def _body(file: File, config: Config) -> bytes | Drop:
    try:
        body = read_whole(file, config.max_record_bytes)
    except READ_ERRORS as error:
        return broken(file.name, error)
    return body if body is not None else Drop("too_long", file.name, threshold=config.max_record_bytes)


def _text_row(body: bytes, file: File, number: int | None, config: Config, kind: str) -> Item:
    from llmpipe.crawl.extract import extract

    place = file.name if number is None else f"{file.name}:{number}"
    if body.startswith(_BINARY):
        return Drop("not_text", place)
    page = extract(body, "", _MEDIA_TYPES[kind])
    if page.replacement_ratio > config.max_replacement_ratio:
        return Drop("undecodable", place, page.text[:400], page.replacement_ratio, config.max_replacement_ratio)
    if not page.text:
        return Drop("no_text", place)
    key = file.key if number is None else f"{file.key}#{number}"
    return Row(key, file.key, {"text": page.text, "title": page.title, "meta": {"encoding": page.encoding}})


def _split_text(unit: Unit, config: Config) -> Iterator[Item]:
    """Cut a text at the lines that match `split`; holds one document at a time."""
    file = unit.files[0]
    separator, number, lines, size = re.compile(config.split or ""), 0, [], 0

    def finish() -> Iterator[Item]:
        if size > config.max_record_bytes:
            yield Drop("too_long", f"{file.name}:{number}", threshold=config.max_record_bytes)
        elif lines and b"".join(lines).strip():
            yield _text_row(b"".join(lines), file, number, config, "text")

    try:
        with open_file(file) as stream:
            number = 1
            for line in read_lines(stream, limit=config.max_record_bytes):
                if line is not None and separator.fullmatch(line.rstrip(b"\r\n").decode("utf-8", "replace")):
                    yield from finish()
                    lines, size, number = [], 0, number + 1
                    continue
                size += config.max_record_bytes + 1 if line is None else len(line)
                if size <= config.max_record_bytes and line is not None:
                    lines.append(line)
                else:
                    lines = []
            yield from finish()
    except READ_ERRORS as error:
        yield broken(f"{file.name}:{number}", error)


# --- HTML, WARC, WET, WACZ ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Page:
    key: str
    file: File
    place: str
    body: bytes
    url: str
    content_type: str
    date: str | None = None


def html(unit: Unit, config: Config) -> Iterator[Item]:
    yield from _extracted(_html_pages(unit, config), config)


def _html_pages(unit: Unit, config: Config) -> Iterator[_Page | Drop]:
    for file in unit.files:
        body = _body(file, config)
        if isinstance(body, Drop):
            yield body
        elif body.startswith(_BINARY):
            yield Drop("not_text", file.name)
        else:
            yield _Page(file.key, file, file.name, body, "", "text/html")


def warc(unit: Unit, config: Config) -> Iterator[Item]:
    yield from _extracted(_warc_pages(unit, config), config)


def _warc_pages(unit: Unit, config: Config) -> Iterator[_Page | Drop]:
    from llmpipe.crawl.warc import read_warc_stream

    file = unit.files[0]
    try:
        with open_raw(file) as stream:
            for record in read_warc_stream(stream, file.name, start=unit.start, end=unit.end, max_bytes=config.max_record_bytes):
                yield _record_page(record, file, file.name, config)
    except READ_ERRORS as error:
        yield broken(file.name, error)
    except InputError as error:
        if not file.is_local and "neither WARC" not in error.message:  # the network, not the file
            raise
        yield broken(file.name, error)


def wacz(unit: Unit, config: Config) -> Iterator[Item]:
    yield from _extracted(_wacz_pages(unit, config), config)


def _wacz_pages(unit: Unit, config: Config) -> Iterator[_Page | Drop]:
    """Read one WARC of the zip in place: nothing is unpacked, so its names lead nowhere and its sizes are only read as far as records go."""
    from llmpipe.crawl.warc import read_warc_stream

    file = unit.files[0]
    place = f"{file.name}/{unit.member}"
    if not unit.member:
        yield broken(file.name, "no archive/*.warc in it, or no zip file")
        return
    try:
        with open_raw(file) as stream, zipfile.ZipFile(stream) as archive:
            info = archive.getinfo(unit.member)
            if info.flag_bits & 1:
                yield Drop("encrypted", place)
                return
            if info.compress_type == zipfile.ZIP_STORED:
                for record in read_warc_stream(_Slice(stream, _data_offset(stream, info), info.file_size), place, start=unit.start, end=unit.end, max_bytes=config.max_record_bytes):
                    yield _record_page(record, file, place, config)
            else:
                with archive.open(info) as member:
                    for record in read_warc_stream(member, place, end=info.file_size, max_bytes=config.max_record_bytes):  # type: ignore[arg-type]
                        yield _record_page(record, file, place, config)
    except (*READ_ERRORS, KeyError, NotImplementedError, struct.error) as error:  # zipfile raises NotImplementedError for codecs it lacks
        yield broken(place, error)
    except InputError as error:
        if not file.is_local and "neither WARC" not in error.message:
            raise
        yield broken(place, error)


def _data_offset(stream: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: its local header may be longer than the one in the directory."""
    stream.seek(info.header_offset)
    head = stream.read(30)
    if head[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("no local header where the directory says")
    name, extra = struct.unpack("<HH", head[26:30])
    return info.header_offset + 30 + name + extra


class _Slice:
    """A range of a file as a file of its own."""

    def __init__(self, stream: BinaryIO, offset: int, size: int) -> None:
        self._stream, self._offset, self._size, self._position = stream, offset, size, 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        return self._take(size, self._stream.read)

    def readline(self, size: int = -1) -> bytes:
        return self._take(size, self._stream.readline)

    def _take(self, size: int, how: object) -> bytes:
        left = max(0, self._size - self._position)
        self._stream.seek(self._offset + self._position)
        out = how(left if size < 0 else min(size, left))  # type: ignore[operator]
        self._position += len(out)
        return out


def _record_page(record: WarcRecord, file: File, name: str, config: Config) -> _Page | Drop:
    from llmpipe.crawl.urls import canonical

    place = f"{name}:{record.offset}"
    kind = (record.content_type or "").partition(";")[0].strip().lower()
    if record.error:
        return Drop("broken_record" if record.error != "too long" else "too_long", place, record.url, record.error)
    if record.kind == "response" and record.status != 200:
        return Drop("status", place, record.url, record.status, 200)
    if kind not in ("text/html", "application/xhtml+xml", "text/plain", "text/markdown"):
        return Drop("content_type", place, record.url, kind)
    key = canonical(record.url) if record.url.startswith(("http://", "https://")) else f"{file.key}#{record.offset}"
    return _Page(key, file, place, record.payload, record.url, record.content_type or "", record.date)


def _extracted(pages: Iterator[_Page | Drop], config: Config) -> Iterator[Item]:
    """Extract pages in a process that may be killed; yield rows in the order of pages."""
    from llmpipe.crawl.extract import ExtractPool

    waiting: dict[int, _Page | Drop] = {}
    done: dict[int, Extracted | None] = {}
    turn = 0
    with ExtractPool(1, timeout_s=config.timeout_s, metadata=config.metadata, max_pending_bytes=8 << 20) as pool:
        number, more = 0, True
        while more or waiting:
            while more and not pool.is_full and len(waiting) < 64:
                page = next(pages, None)
                if page is None:
                    more = False
                    break
                waiting[number] = page
                if isinstance(page, Drop):
                    done[number] = None
                else:
                    pool.submit(str(number), page.body, page.url, page.content_type)
                number += 1
            done.update((int(found.key), found) for found in pool.poll(0 if turn in done else 1.0))
            while turn in done:
                page, found = waiting.pop(turn), done.pop(turn)
                yield page if isinstance(page, Drop) else _page_row(page, found, config)
                turn += 1


def _page_row(page: _Page, found: Extracted | None, config: Config) -> Item:
    assert found is not None
    if found.error and not found.text:
        return Drop("extraction", page.place, page.url, found.error)
    if found.replacement_ratio > config.max_replacement_ratio:
        return Drop("undecodable", page.place, found.text[:400], found.replacement_ratio, config.max_replacement_ratio)
    if not found.text:
        return Drop("no_text", page.place, page.url)
    values = {name: getattr(found, name) for name in ("text", "title", "author", "date", "language", "license")}
    values["url"] = page.url or found.canonical
    values["fetched_at"] = page.date
    values["meta"] = {"encoding": found.encoding, "extractor": found.extractor, "error": found.error}
    return Row(page.key, page.file.key, values)
