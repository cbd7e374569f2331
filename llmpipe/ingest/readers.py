"""Read the records of one unit: a generator of rows and of what had to be dropped, with the place of each.

    for item in read_unit(unit, config): ...        # Row(key, values) or Drop(rule, place, snippet)

Broken lines, files that end early, bombs and records without text are dropped and counted, never raised; only a mapping
that fits no record is an error (`check_mapping`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from llmpipe.crawl.decode import decode
from llmpipe.data.docs import parquet_rows
from llmpipe.errors import InputError
from llmpipe.ingest.files import READ_ERRORS, File, Unit, open_file, read_lines

if TYPE_CHECKING:
    from llmpipe.crawl.extract import Extracted
    from llmpipe.ingest.stage import Config

_MEDIA_TYPES = {"html": "text/html", "markdown": "text/markdown", "text": "text/plain"}
_MAPPED = ("url", "title", "author", "date", "language", "license", "source")


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    """What the id is made of."""
    file: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drop:
    rule: str
    place: str
    """file:line, file:record or file."""
    snippet: str = ""
    value: Any = None
    threshold: Any = None


Item = Row | Drop


def read_unit(unit: Unit, config: Config) -> Iterator[Item]:
    return _READERS[unit.format](unit, config)


# --- JSONL and Parquet ----------------------------------------------------------------------------------------------


def _jsonl(unit: Unit, config: Config) -> Iterator[Item]:
    file, number = unit.files[0], unit.line - 1
    try:
        with open_file(file.path) as stream:
            stream.seek(unit.start) if unit.start else None
            position = unit.start
            for line in read_lines(stream, limit=config.max_record_bytes):
                number += 1
                place = f"{file.name}:{number}"
                if line is None:
                    yield Drop("too_long", place, threshold=config.max_record_bytes)
                    position = stream.tell() if unit.end is not None else 0
                else:
                    position += len(line)
                    yield from _record(_parse(line), place, file, number, config, line)
                if unit.end is not None and position >= unit.end:
                    return
    except READ_ERRORS as error:
        yield Drop("broken_file", f"{file.name}:{number + 1}", value=str(error)[:200])


def _parse(line: bytes) -> Any:
    """Parse one line; a ValueError says why not."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = decode(line, "text/plain").text
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return error


def _record(record: Any, place: str, file: File, number: int, config: Config, line: bytes = b"") -> Iterator[Item]:
    if record is None:  # an empty line
        return
    if isinstance(record, Exception):
        yield Drop("broken_json", place, line[:400].decode("utf-8", "replace"), value=str(record)[:200])
    elif not isinstance(record, dict):
        yield Drop("not_an_object", place, line[:400].decode("utf-8", "replace"), value=type(record).__name__)
    else:
        yield _mapped(record, place, file, number, config)


def _mapped(record: dict[str, Any], place: str, file: File, number: int, config: Config) -> Item:
    text = record.get(config.text_field)
    if not isinstance(text, str) or not text.strip():
        return Drop("no_text", place, value=config.text_field)
    values: dict[str, Any] = {"text": text}
    for name in _MAPPED:
        column = getattr(config, f"{name}_field")
        if column and record.get(column) is not None:
            values[name] = _string(record[column])
    if config.meta_fields:
        values["meta"] = {name: _string(record[name]) for name in config.meta_fields if record.get(name) is not None}
    key = f"{file.key}#{number}"
    if config.id_field:
        if record.get(config.id_field) is None:
            return Drop("no_id", place, value=config.id_field)
        key = _string(record[config.id_field])
    elif values.get("url"):
        key = values["url"]
    return Row(key, file.key, values)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)


def _parquet(unit: Unit, config: Config) -> Iterator[Item]:
    file = unit.files[0]
    number = sum(parquet_rows(Path(file.path))[: unit.start])
    try:
        with pq.ParquetFile(file.path) as f:
            wanted = [c for c in _columns(config) if c in f.schema_arrow.names]
            for batch in f.iter_batches(batch_size=500, row_groups=[unit.start], columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    if len(str(record.get(config.text_field) or "")) > config.max_record_bytes:
                        yield Drop("too_long", f"{file.name}:{number}", threshold=config.max_record_bytes)
                    else:
                        yield _mapped(record, f"{file.name}:{number}", file, number, config)
    except READ_ERRORS as error:
        yield Drop("broken_file", f"{file.name}:{number + 1}", value=str(error)[:200])


def _columns(config: Config) -> list[str]:
    fields = [config.text_field, config.id_field, *(getattr(config, f"{name}_field") for name in _MAPPED), *config.meta_fields]
    return list(dict.fromkeys(f for f in fields if f))


def check_mapping(file: File, file_format: str, config: Config, required: list[str]) -> None:
    """Raise an `InputError` that shows the columns there are when a file has none of a field that the config names."""
    if file_format == "parquet":
        parquet_rows(Path(file.path))  # says what is wrong with a broken one
        schema = pq.read_schema(file.path)
        columns = {name: str(schema.field(name).type) for name in schema.names}
        text = columns.get(config.text_field)
        if text is not None and text not in ("string", "large_string", "string_view") and not text.startswith("dictionary<values=string"):
            raise InputError(f"{file.path}: column {config.text_field!r} holds {text}, not text", hint=_mapping_hint(columns))
    else:
        columns = _jsonl_columns(file, config)
        if not columns:
            return
    for name in required:
        if name not in columns:
            raise InputError(f"{file.path}: no field {name!r}; it has {', '.join(f'{k} ({v})' for k, v in list(columns.items())[:40])}", hint=_mapping_hint(columns))


def _jsonl_columns(file: File, config: Config) -> dict[str, str]:
    columns: dict[str, str] = {}
    try:
        with open_file(file.path) as stream:
            for number, line in enumerate(read_lines(stream, limit=config.max_record_bytes)):
                record = _parse(line) if line else None
                if isinstance(record, dict):
                    columns.update((k, type(v).__name__) for k, v in record.items() if k not in columns)
                if number >= 100:
                    break
    except READ_ERRORS:
        return columns  # what is broken is counted when it is read
    return columns


def _mapping_hint(columns: dict[str, str]) -> str:
    strings = [k for k, v in columns.items() if v in ("str", "string", "large_string")]
    return f"--set text_field={strings[0]}" if strings else "--set text_field=NAME, id_field, url_field, … say which field is which"


# --- files that are documents ---------------------------------------------------------------------------------------


def _documents(unit: Unit, config: Config) -> Iterator[Item]:
    """Read small files whole: text and Markdown as they are, HTML by extraction."""
    if unit.format == "html":
        yield from _extracted(_pages(unit, config), config)
        return
    for file in unit.files:
        body = _whole(file, config.max_record_bytes)
        if isinstance(body, Drop):
            yield body
        else:
            yield _text_row(body, file, None, config, unit.format)


def _whole(file: File, limit: int) -> bytes | Drop:
    try:
        with open_file(file.path) as stream:
            body = stream.read(limit + 1)
            if len(body) <= limit:
                stream.read(1)  # the checksum at the end of a compressed file is looked at here
    except READ_ERRORS as error:
        return Drop("broken_file", file.name, value=str(error)[:200])
    return body if len(body) <= limit else Drop("too_long", file.name, threshold=limit)


def _text_row(body: bytes, file: File, number: int | None, config: Config, kind: str) -> Item:
    from llmpipe.crawl.extract import extract

    place = file.name if number is None else f"{file.name}:{number}"
    if body.startswith((b"%PDF-", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff")):
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
        with open_file(file.path) as stream:
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
        yield Drop("broken_file", f"{file.name}:{number}", value=str(error)[:200])


def _text(unit: Unit, config: Config) -> Iterator[Item]:
    return _split_text(unit, config) if config.split else _documents(unit, config)


@dataclass(frozen=True, slots=True)
class _Page:
    key: str
    file: File
    place: str
    body: bytes
    url: str
    content_type: str
    date: str | None = None


def _pages(unit: Unit, config: Config) -> Iterator[_Page | Drop]:
    for file in unit.files:
        body = _whole(file, config.max_record_bytes)
        if isinstance(body, Drop):
            yield body
        elif body.startswith((b"%PDF-", b"PK\x03\x04", b"\x89PNG", b"\xff\xd8\xff")):
            yield Drop("not_text", file.name)
        else:
            yield _Page(file.key, file, file.name, body, "", "text/html")


def _warc(unit: Unit, config: Config) -> Iterator[Item]:
    yield from _extracted(_warc_pages(unit, config), config)


def _warc_pages(unit: Unit, config: Config) -> Iterator[_Page | Drop]:
    from llmpipe.crawl.urls import canonical
    from llmpipe.crawl.warc import read_warc

    file = unit.files[0]
    for record in read_warc(Path(file.path), start=unit.start, end=unit.end, max_bytes=config.max_record_bytes):
        place = f"{file.name}:{record.offset}"
        kind = (record.content_type or "").partition(";")[0].strip().lower()
        if record.error:
            yield Drop("broken_record" if record.error != "too long" else "too_long", place, record.url, record.error)
        elif record.kind == "response" and record.status != 200:
            yield Drop("status", place, record.url, record.status, 200)
        elif kind not in ("text/html", "application/xhtml+xml", "text/plain", "text/markdown"):
            yield Drop("content_type", place, record.url, kind)
        else:
            key = canonical(record.url) if record.url.startswith(("http://", "https://")) else f"{file.key}#{record.offset}"
            yield _Page(key, file, place, record.payload, record.url, record.content_type or "", record.date)


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


_READERS: dict[str, Callable[[Unit, Config], Iterator[Item]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "text": _text,
    "markdown": _documents,
    "html": _documents,
    "warc": _warc,
}
