"""Read files and folders into documents.

    llmpipe ingest books/ news.jsonl.zst --output docs --set text_field=content

    llmpipe ingest zhwiki-latest-pages-articles-multistream.xml.bz2 --output docs
    llmpipe ingest s3://bucket/corpus hf://owner/name https://host/pages.warc.gz --output docs

Reads JSONL, JSON, CSV, text (plain or .gz .bz2 .xz .zst), Parquet, Arrow, Markdown, HTML, WARC, WET, WACZ, dumps of
Wikipedia, EPUB, DOCX and PDF; writes docs shards, `dropped/` for records that are broken, empty or too long, with file and
line. Run again, it reads what is new: a changed file gives rows `changed` for records whose text differs and `gone` for
those that vanished, a deleted file gives `gone`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llmpipe.data.docs import docs_table, dropped_table, meta_value, read_shards, write_docs
from llmpipe.data.ids import content_hash, doc_id
from llmpipe.data.manifest import Shard
from llmpipe.data.remote import Remote
from llmpipe.data.seen import Seen
from llmpipe.errors import InputError
from llmpipe.ingest.books import check_libraries
from llmpipe.ingest.files import File, Format, format_of, included, sniff
from llmpipe.ingest.mapping import Drop, Row, text_fields
from llmpipe.ingest.readers import check_mapping, read_unit
from llmpipe.ingest.tables import dataset_files
from llmpipe.ingest.units import Unit, plan_units
from llmpipe.ingest.variants import Variant
from llmpipe.work import Counts, Input, UnitOutput, Work

SHARD_TEXT_BYTES = 128 << 20
"""A unit that gives more text writes further shards, so that it holds no more than this."""
SHARD_ROWS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    format: Format = "auto"
    """What the files are: auto (by their names), jsonl, json, csv, tsv, parquet, arrow, text, markdown, html, warc (WET too),
    wacz, wiki (a dump of MediaWiki), epub, docx, pdf (needs llmpipe[pdf])."""
    include: list[str] = field(default_factory=list)
    """Which files of a folder, as patterns of names such as *.jsonl.gz; empty: all whose format is known."""
    text_field: str | list[str] = "text"
    """Tables and JSON: the field that holds the text, or several, which blank lines divide. Here and below, meta.lang is the
    field lang in meta."""
    id_field: str | None = None
    """The field that identifies a record; null: its URL, or else its file and line."""
    url_field: str | None = "url"
    title_field: str | None = "title"
    author_field: str | None = "author"
    date_field: str | None = "date"
    language_field: str | None = "language"
    license_field: str | None = "license"
    source_field: str | None = "source"
    meta_fields: list[str] = field(default_factory=list)
    """Further fields to keep, in the column `meta`: a label, say."""
    source: str | None = None
    """What to call the origin of these documents; null: the record's own, or the name of its file."""
    split: str | None = None
    """Text files: a regular expression for lines that stand between documents; null: one file is one document."""
    variant: Variant = "zh-hans"
    """Dumps of Chinese wikis: the variant that -{zh-hans:…;zh-hant:…}- is resolved to."""
    split_books: bool = False
    """EPUB: a document for each chapter instead of one for the book."""
    metadata: bool = False
    """HTML and WARC: find author and date too, at twice the time."""
    timeout_s: float = 20.0
    """HTML and WARC: seconds that extraction may take for one page."""
    book_timeout_s: float = 300.0
    """EPUB, DOCX and PDF: seconds that one file may take."""
    max_record_bytes: int = 16 << 20
    """Longer records, lines and files are dropped."""
    max_book_bytes: int = 256 << 20
    """Longer EPUB, DOCX and PDF files are dropped; pictures are most of them."""
    max_replacement_ratio: float = 0.05
    """Files with more undecodable characters than this are dropped."""

    def __post_init__(self) -> None:
        if self.split is not None:
            try:
                re.compile(self.split)
            except re.error as error:
                raise ValueError(f"split: not a regular expression ({error})") from None
        for name in ("max_record_bytes", "max_book_bytes", "timeout_s", "book_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be more than 0")
        if not self.text_field:
            raise ValueError("text_field: names no field")


def plan(config: Config, work: Work) -> dict[str, Any]:
    files, unknown = _files(config, work)
    formats: dict[str, int] = defaultdict(int)
    for _, kind in files:
        formats[kind] += 1
    return {"files": dict(formats), "unknown": len(unknown), "bytes": sum(f.bytes for f, _ in files), "changed": len(work.changed), "gone": len(work.gone)}


def run(config: Config, work: Work) -> Counts:
    files, unknown = _files(config, work)
    check_libraries({kind for _, kind in files})
    for file, kind in files:
        check_mapping(file, kind, config, _required(config))
    if any(isinstance(i.path, Remote) and i.path.url.startswith("memory:") for i in work.inputs):
        work.workers = 1  # its files live in this process
    units = plan_units(files, lines_too=config.split is not None)
    old = _previous_rows(work)
    results = work.map(_read, units, shared=(config, old))
    results += work.map(_drop_unread, [_Unread(tuple(unknown))] if unknown else [], phase="unknown")
    seen = {i for result in results for i in result.value or ()}
    vanished = sorted(i for i in old if i not in seen)
    results += work.map(_write_gone, [_Gone(tuple(vanished))] if vanished else [], phase="gone")
    total = Counts()
    for result in results:
        total += result.counts
    if not total.kept and not work.previous:
        what = ", ".join(f"{n} {rule}" for rule, n in total.dropped.items()) or "no file of a known format"
        raise InputError(f"no documents in {', '.join(str(i.path) for i in work.inputs)} ({what}){_first_reason(work)}", hint="--set format=text (or jsonl, html, …) reads files whatever their names")
    _remember(work)
    return total


def _first_reason(work: Work) -> str:
    """Say of the first drops what was wrong: with no document there is no output to look into."""
    rows = [row for name in sorted(work.files) if name.startswith("dropped/") for row in pq.read_table(work.output / name).slice(0, 3).to_pylist()]
    return "".join(f"\n  {row['url']}: {row['rule']}" + (f" ({row['value']})" if row["value"] else "") for row in rows[:3])


def _remember(work: Work) -> None:
    """Keep the digests of local inputs, so that the next run reads only those that moved."""
    local = [i for i in work.inputs if isinstance(i.path, Path)]
    if local:
        files = [(i.path if i.path.is_file() else i.path / s.name, s.sha256) for i in local for s in i.shards]
        Seen(work.output).save(files, since=min(i.listed_at for i in local))


def _required(config: Config) -> list[str]:
    """The fields that a mapping names on its own account: those must be there."""
    named = [getattr(config, f.name) for f in fields(config) if f.name.endswith("_field") and f.name != "text_field" and getattr(config, f.name) != f.default]
    return [*text_fields(config), *(n for n in named if n), *config.meta_fields]


def _files(config: Config, work: Work) -> tuple[list[tuple[File, str]], list[tuple[str, str]]]:
    """List the files to read with their formats, and (name, rule) of those that cannot be read."""
    known: list[tuple[File, str]] = []
    unread: list[tuple[str, str]] = []
    everything = {(i.role, s.name): _file(i, s) for i in work.inputs for s in i.shards}
    shards, beside = dataset_files(list(everything.values()))
    for given, shard in [*work.pending, *work.changed]:
        file = everything[given.role, shard.name]
        alone = len(given.shards) == 1 and _is_file(given)
        if not alone and not included(shard.name, config.include):
            continue
        if file.key in beside or (_is_hub(given) and Path(shard.name).name.lower() in HUB_FILES):
            continue
        kind = config.format if config.format != "auto" else "arrow" if file.key in shards else format_of(shard.name) or (sniff(file) if alone else None)
        if kind is None:
            unread.append((shard.name, "unknown_format"))
        else:
            known.append((file, kind))
    unread += sorted((key.partition("/")[2].rstrip("!"), "missing_file") for key in shards if key.endswith("!"))
    return known, unread


HUB_FILES = ("readme.md", "dataset_infos.json", "dataset_info.json")
"""What stands beside the data in a repository of the hub."""


def _is_hub(given: Input) -> bool:
    return isinstance(given.path, Remote) and given.path.url.startswith("hf:")


def _is_file(given: Input) -> bool:
    """Whether an input is one file by itself, not a folder."""
    return given.path.is_file() if isinstance(given.path, Path) else given.path.names_file(given.shards[0].name)


def _file(given: Input, shard: Shard) -> File:
    if isinstance(given.path, Path):
        path = str(given.path if given.path.is_file() else given.path / shard.name)
    else:
        path = given.path.url if given.path.names_file(shard.name) else (given.path / shard.name).url
    return File(_key(given.role, shard.name), path, shard.name, shard.bytes)


def _key(role: str, name: str) -> str:
    return f"{role}/{name}"


def _previous_rows(work: Work) -> dict[str, tuple[str, str]]:
    """Find the live rows that earlier generations made of files that changed or are gone: id -> (file, hash of the text)."""
    touched = {_key(g.role, s.name) for g, s in work.changed} | {_key(c.input, c.name) for c in work.gone}
    rows: dict[str, tuple[str, str]] = {}
    if touched and work.previous:
        for batch in read_shards(work.output, work.previous, columns=["id", "content_hash", "meta"]):
            for row in batch.to_pylist():
                key = meta_value(row["meta"], "file")
                if key in touched:
                    rows[row["id"]] = (key, row["content_hash"])
    return rows


# --- units, in worker processes -------------------------------------------------------------------------------------


def _read(unit: Unit, out: UnitOutput, shared: tuple[Config, dict[str, tuple[str, str]]]) -> Counts:
    config, old = shared
    writer = _Writer(out)
    unchanged, seen = 0, []
    for item in read_unit(unit, config):
        if isinstance(item, Drop):
            writer.drop(item)
            continue
        row = _document(item, config)
        if row["id"] in old:
            seen.append(row["id"])
            if old[row["id"]] == (item.file, row["content_hash"]):
                unchanged += 1
                continue
            row["op"] = "changed"
        writer.add(row)
    writer.close()
    out.value = seen or None
    extra = {"unchanged": unchanged} if unchanged else {}
    return Counts(read=writer.kept + unchanged + sum(writer.rules.values()), kept=writer.kept, dropped=writer.rules, extra=extra)


def _document(item: Row, config: Config) -> dict[str, Any]:
    values = dict(item.values)
    values["text"] = values["text"].replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    name = item.file.partition("/")[2]
    values["source"] = config.source or values.get("source") or name
    values["meta"] = {**(values.get("meta") or {}), "file": item.file}
    if isinstance(values.get("fetched_at"), str):
        values["fetched_at"] = _time(values["fetched_at"])
    return {"id": doc_id(item.key), "content_hash": content_hash(values["text"]), "op": "new", **values}


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class _Writer:
    """Gather rows and write a shard whenever there is enough: the first under the unit's name, others numbered."""

    def __init__(self, out: UnitOutput) -> None:
        self.out = out
        self.kept = self.parts = 0
        self.rules: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._drops: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(row["text"])
        self.kept += 1
        if self._bytes >= SHARD_TEXT_BYTES or len(self._rows) >= SHARD_ROWS:
            self._flush()

    def drop(self, item: Drop) -> None:
        self.rules[item.rule] = self.rules.get(item.rule, 0) + 1
        self._drops.append({"url": item.place, "stage": "ingest", "rule": item.rule, "value": item.value, "threshold": item.threshold, "snippet": item.snippet})

    def close(self) -> None:
        self._flush()
        self.out.dropped(dropped_table(self._drops))

    def _flush(self) -> None:
        if self._rows:
            suffix = f"-{self.parts:04d}" if self.parts else ""
            self.out.shards.append(write_docs(self.out.root / f"{self.out.stem}{suffix}.parquet", docs_table(self._rows)))
            self.parts += 1
            self._rows, self._bytes = [], 0


@dataclass(frozen=True, slots=True)
class _Unread:
    files: tuple[tuple[str, str], ...]
    """(name, rule)."""
    name: str = "unknown"


def _drop_unread(unit: _Unread, out: UnitOutput, shared: None) -> Counts:
    writer = _Writer(out)
    for name, rule in unit.files:
        writer.drop(Drop(rule, name))
    writer.close()
    return Counts(read=len(unit.files), dropped=writer.rules)


@dataclass(frozen=True, slots=True)
class _Gone:
    ids: tuple[str, ...]
    name: str = "gone"


def _write_gone(unit: _Gone, out: UnitOutput, shared: None) -> Counts:
    # under the name of the generation's other shards, after them: the last row of an id is the one that counts
    name = out.stem.replace("gone-", "part-", 1).rpartition("-")[0] + "-gone.parquet"
    out.shards.append(write_docs(out.root / name, docs_table([{"id": i, "text": "", "op": "gone"} for i in unit.ids])))
    return Counts(extra={"gone": len(unit.ids)})
