"""Read the records of one unit: a generator of rows and of what had to be dropped, with the place of each.

    for item in read_unit(unit, config): ...        # Row(key, file, values) or Drop(rule, place, snippet)

Broken lines, files that end early, bombs and records without text are dropped and counted, never raised; only a mapping
that fits no record is an error (`check_mapping`), and a network that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llmpipe.ingest.books import books
from llmpipe.ingest.files import TABLES, File
from llmpipe.ingest.mapping import Item, check_columns
from llmpipe.ingest.pages import html, text, wacz, warc
from llmpipe.ingest.records import delimited, json_values, jsonl, sample_columns
from llmpipe.ingest.tables import arrow, parquet, table_columns
from llmpipe.ingest.units import Unit
from llmpipe.ingest.wiki import wiki

if TYPE_CHECKING:
    from llmpipe.ingest.stage import Config

READERS: dict[str, Callable[[Unit, Config], Iterator[Item]]] = {
    "jsonl": jsonl,
    "json": json_values,
    "csv": delimited,
    "tsv": delimited,
    "parquet": parquet,
    "arrow": arrow,
    "text": text,
    "markdown": text,
    "html": html,
    "warc": warc,
    "wacz": wacz,
    "wiki": wiki,
    "epub": books,
    "docx": books,
    "pdf": books,
}


def read_unit(unit: Unit, config: Config) -> Iterator[Item]:
    return READERS[unit.format](unit, config)


def check_mapping(file: File, file_format: str, config: Config, required: list[str]) -> None:
    """Raise an `InputError` that shows the columns there are when a table has none of a field that the config names."""
    if file_format not in TABLES:
        return
    columns = table_columns(file, file_format) if file_format in ("parquet", "arrow") else sample_columns(file, file_format, config)
    if columns:
        check_columns(columns, file, config, required)
