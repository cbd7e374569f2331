"""Read the records of JSONL, JSON, CSV and TSV files.

    for item in jsonl(unit, config): ...        # Row(key, file, values) or Drop(rule, place)

Broken lines are dropped with their number, and what follows is read; a file that ends early gives what it has.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from llmpipe.crawl.decode import decode
from llmpipe.ingest.files import READ_ERRORS, File, open_file, read_lines
from llmpipe.ingest.mapping import Drop, Item, broken, flat, mapped
from llmpipe.ingest.units import Unit

if TYPE_CHECKING:
    from llmpipe.ingest.stage import Config

SAMPLE_RECORDS = 100
SAMPLE_BYTES = 1 << 16
_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,]*")


# --- JSONL ----------------------------------------------------------------------------------------------------------


def jsonl(unit: Unit, config: Config) -> Iterator[Item]:
    file, number = unit.files[0], unit.line - 1
    try:
        with open_file(file) as stream:
            if unit.start:
                stream.seek(unit.start)
            position = unit.start
            for line in read_lines(stream, limit=config.max_record_bytes):
                number += 1
                place = f"{file.name}:{number}"
                if line is None:
                    yield Drop("too_long", place, threshold=config.max_record_bytes)
                    position = stream.tell() if unit.end is not None else 0
                else:
                    position += len(line)
                    yield from _record(_parse(line), place, file, number, config, line[:400].decode("utf-8", "replace"))
                if unit.end is not None and position >= unit.end:
                    return
    except READ_ERRORS as error:
        yield broken(f"{file.name}:{number + 1}", error)


def _parse(line: bytes) -> Any:
    """Parse one line: a value, None for an empty one, an exception for a broken one."""
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


def _record(record: Any, place: str, file: File, number: int, config: Config, snippet: str = "") -> Iterator[Item]:
    if record is None:  # an empty line
        return
    if isinstance(record, Exception):
        yield Drop("broken_json", place, snippet, value=str(record)[:200])
    elif not isinstance(record, dict):
        yield Drop("not_an_object", place, snippet, value=type(record).__name__)
    else:
        yield mapped(record, place, file, number, config)


# --- JSON: an array of records, or values one after another ----------------------------------------------------------


def json_values(unit: Unit, config: Config) -> Iterator[Item]:
    file, number = unit.files[0], 0
    try:
        with open_file(file) as stream:
            for number, value in enumerate(_values(stream, config.max_record_bytes), 1):
                # nothing in an array is passed over in silence, null neither
                yield from _record("null" if value is None else value, f"{file.name}:{number}", file, number, config)
    except READ_ERRORS as error:
        yield broken(f"{file.name}:{number + 1}", error)


def _values(stream: BinaryIO, limit: int) -> Iterator[Any]:
    """Yield the elements of an array, or concatenated values; holds one value and a piece at a time.

    A value that is not JSON ends an array; between values on lines of their own, reading goes on with the next line.
    """
    reader = io.TextIOWrapper(stream, encoding=_encoding(stream), errors="replace", newline="")
    buffer, position, ended, in_array, first = "", 0, False, False, True
    while True:
        position = _BETWEEN.match(buffer, position).end()  # type: ignore[union-attr]
        if first and position < len(buffer) and buffer[position] == "[":
            in_array, position = True, position + 1
            first = False
            continue
        if in_array and position < len(buffer) and buffer[position] == "]":
            return
        if position < len(buffer):
            first = False
            try:
                value, end = _DECODER.raw_decode(buffer, position)
                if end < len(buffer) or ended:  # a number may go on in the next piece
                    yield value
                    position = end
                    continue
            except RecursionError as error:
                yield error
                return
            except ValueError as error:
                problem = error
                if ended or len(buffer) - position > limit:
                    yield problem
                    line_end = buffer.find("\n", position)
                    if in_array or line_end < 0:
                        return
                    position = line_end + 1
                    continue
                line_end = buffer.find("\n", position)
                if not in_array and line_end >= 0 and buffer[position] != "{" and buffer[position] != "[":
                    yield problem
                    position = line_end + 1
                    continue
        elif ended:
            if in_array:
                yield ValueError("the array has no end")
            return
        # as much again as there is: a value of n characters is looked at log n times
        piece = reader.read(max(1 << 16, len(buffer) - position))
        ended = not piece
        buffer, position = buffer[position:] + piece, 0


def _encoding(stream: BinaryIO) -> str:
    """Find the encoding of a stream by its first bytes, which stay in its buffer."""
    peek = getattr(stream, "peek", None)
    head = peek(SAMPLE_BYTES)[:SAMPLE_BYTES] if peek is not None else b""
    if head.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    found = decode(head, "text/plain", truncated=True).encoding
    return "utf-8" if found in ("ascii", "us-ascii") else found


# --- CSV and TSV ----------------------------------------------------------------------------------------------------


def delimited(unit: Unit, config: Config) -> Iterator[Item]:
    """Read a table with a line of column names. Quotes and line ends within them are as in RFC 4180."""
    file, number, line = unit.files[0], 0, 1
    csv.field_size_limit(config.max_record_bytes)
    try:
        with open_file(file) as stream:
            reader, text = _csv_reader(stream, unit.format, config.max_record_bytes)
            names: list[str] | None = None
            while True:
                line = reader.line_num + 1
                place = f"{file.name}:{line}"
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:  # a quote that nothing closes, most often: the lines it swallowed are lost together
                    yield Drop("broken_row", f"{place}-{reader.line_num}", value=str(error)[:200])
                    continue
                if not any(cells):
                    continue
                if names is None:
                    names = [cell.strip() for cell in cells]
                    continue
                number += 1
                if len(cells) > len(names):
                    yield Drop("broken_row", place, " ".join(cells)[:400], f"{len(cells)} cells", len(names))
                    continue
                if text.last_was_cut:
                    text.last_was_cut = False
                    yield Drop("too_long", place, threshold=config.max_record_bytes)
                    continue
                item = mapped({k: v for k, v in zip(names, cells, strict=False) if v}, place, file, number, config)
                yield _undecodable(item, place, config)
    except READ_ERRORS as error:
        yield broken(f"{file.name}:{line}", error)


def _undecodable(item: Item, place: str, config: Config) -> Item:
    if isinstance(item, Drop):
        return item
    text = item.values["text"]
    ratio = text.count("\ufffd") / len(text)
    return item if ratio <= config.max_replacement_ratio else Drop("undecodable", place, text[:400], ratio, config.max_replacement_ratio)


class _Lines:
    """The lines of a text stream; one longer than the limit comes cut, and is said to be."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.encoding = _encoding(stream)
        self._reader = io.TextIOWrapper(stream, encoding=self.encoding, errors="replace", newline="")
        self._limit = limit
        self.last_was_cut = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._reader.readline(self._limit)
        if not line:
            raise StopIteration
        if len(line) >= self._limit and not line.endswith("\n"):
            self.last_was_cut = True
            while (more := self._reader.readline(1 << 20)) and not more.endswith("\n"):
                pass
            line = line[: self._limit // 2] + "\n"
        return line


def _csv_reader(stream: BinaryIO, kind: str, limit: int) -> tuple[Any, _Lines]:
    lines = _Lines(stream, limit)
    head = next(lines, "")
    delimiter = "\t" if kind == "tsv" else max(",;\t|", key=lambda d: (re.sub(r'"[^"]*"', "", head).count(d), d == ","))
    quoting = csv.QUOTE_NONE if kind == "tsv" and '"' not in head else csv.QUOTE_MINIMAL

    def chain() -> Iterator[str]:
        yield head
        yield from lines

    return csv.reader(chain(), delimiter=delimiter, quoting=quoting, strict=True), lines


# --- what the columns are --------------------------------------------------------------------------------------------


def sample_columns(file: File, file_format: str, config: Config) -> dict[str, str]:
    """Return the fields of the first records, by path and type; none where the file is broken at once."""
    columns: dict[str, str] = {}
    try:
        with open_file(file) as stream:
            for number, record in enumerate(_sample(stream, file_format, config)):
                if isinstance(record, dict):
                    for name, kind in flat(record):
                        if columns.setdefault(name, kind) != kind:
                            columns[name] = kind if columns[name] == "null" else columns[name] if kind == "null" else "mixed"
                if number >= SAMPLE_RECORDS:
                    break
    except (*READ_ERRORS, csv.Error):
        return columns  # what is broken is counted when it is read
    return columns


def _sample(stream: BinaryIO, file_format: str, config: Config) -> Iterator[Any]:
    if file_format == "jsonl":
        for line in read_lines(stream, limit=config.max_record_bytes):
            yield _parse(line) if line else None
    elif file_format == "json":
        yield from _values(stream, config.max_record_bytes)
    else:
        csv.field_size_limit(config.max_record_bytes)
        reader, _ = _csv_reader(stream, file_format, config.max_record_bytes)
        yield {name.strip(): "" for name in next(reader, [])}
