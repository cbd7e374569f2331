"""Read EPUB, DOCX and PDF files: a document each, or one a chapter of an EPUB.

    for item in books(unit, config): ...        # Row(key, file, values) or Drop(rule, place)

Parsing (parsers.py) happens in a process that may be killed (sandbox.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmpipe.errors import UsageError
from llmpipe.ingest.files import READ_ERRORS, File, read_whole
from llmpipe.ingest.mapping import Drop, Item, Row, broken
from llmpipe.ingest.sandbox import Sandbox
from llmpipe.ingest.units import Unit

if TYPE_CHECKING:
    from llmpipe.ingest.stage import Config


def check_libraries(formats: set[str]) -> None:
    """Raise a `UsageError` when a format needs a library that is not installed."""
    if "pdf" in formats and importlib.util.find_spec("pypdf") is None:
        raise UsageError("PDF files need pypdf, which is not installed", hint="pip install 'llmpipe[pdf]'; or leave them out: --set 'include=[\"*.txt\", …]'")


def books(unit: Unit, config: Config) -> Iterator[Item]:
    """Read the books of a unit: one document each, or one a chapter where `split_books` says so."""
    with Sandbox(timeout_s=config.book_timeout_s) as sandbox:
        for file in unit.files:
            try:
                body = read_whole(file, config.max_book_bytes)
            except READ_ERRORS as error:
                yield broken(file.name, error)
                continue
            if body is None:
                yield Drop("too_long", file.name, threshold=config.max_book_bytes)
                continue
            yield from _book_rows(sandbox.call(unit.format, body, limit=config.max_record_bytes), file, config)


def _book_rows(found: dict[str, Any], file: File, config: Config) -> Iterator[Item]:
    if error := found.get("error"):
        rule, _, why = error.partition(": ")
        yield Drop(rule if rule in ("encrypted", "broken_file", "too_long") else "extraction", file.name, value=why or rule)
        return
    parts = found["parts"] if config.split_books else ["\n\n".join(found["parts"])]
    parts = [part for part in parts if part.strip()]
    if not parts:
        yield Drop("no_text", file.name)
    if any(len(part) > config.max_record_bytes for part in parts):
        yield Drop("too_long", file.name, threshold=config.max_record_bytes)
        return
    values = {name: found.get(name) for name in ("title", "author", "language", "date", "license")}
    for number, part in enumerate(parts, 1):
        meta = {"missing_parts": found["missing"]} if found.get("missing") else {}
        if config.split_books:
            meta["chapter"] = number
        yield Row(f"{file.key}#{number}" if config.split_books else file.key, file.key, {"text": part, **values, "meta": meta})
