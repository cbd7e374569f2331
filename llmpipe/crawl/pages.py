"""Make a document's row of a fetched page, and keep its bytes in a WARC file that is exactly as long as what is committed.

    archive = Archive(output, frontier, keep=True)
    row = page_row(entry, fetched, extracted, raw=archive.write(fetched), ...); archive.save(frontier)

Writes `warc/part-GGGGG-NNNNNN.warc.gz` (generation, number).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmpipe.crawl.extract import Extracted
from llmpipe.crawl.fetch import Fetched, media_type
from llmpipe.crawl.frontier import Entry, Frontier
from llmpipe.crawl.optout import NOTHING, Verdict
from llmpipe.crawl.warc import WarcWriter, truncate

MAX_WARC_BYTES = 1 << 30


def page_row(
    entry: Entry, fetched: Fetched, page: Extracted, *, host: str, raw: str | None, directives: frozenset[str], text_hash: str, about_ai: Verdict = NOTHING
) -> dict[str, Any]:
    """A row of the document schema; what has no column of its own goes into `meta`."""
    meta = {
        "status": fetched.status,
        "content_type": media_type(fetched.header("content-type")),
        "encoding": page.encoding,
        "encoding_source": page.encoding_source,
        "replacement_ratio": page.replacement_ratio or None,
        "depth": entry.depth,
        "found_by": entry.source,
        "redirects": entry.via,
        "canonical": page.canonical,
        "site_name": page.site_name,
        "tags": ", ".join(page.tags) or None,
        "robots": ", ".join(sorted(directives)) or None,
        "ai_optout": about_ai.word if about_ai.evidence else None,
        "ai_optout_evidence": about_ai.value or None,
        "etag": fetched.header("etag"),
        "last_modified": fetched.header("last-modified"),
        "bytes": len(fetched.body),
        "truncated": fetched.truncated,
        "extractor": page.extractor,
        "extract_error": page.error,
        "raw_ref": raw,
    }
    return {
        "id": entry.doc_id,
        "url": fetched.url,
        "text": page.text,
        "title": page.title,
        "author": page.author,
        "date": page.date,
        "language": page.language,
        "license": page.license,
        "source": host,
        "fetched_at": fetched.at,
        "content_hash": text_hash,
        "op": "changed" if entry.page else "new",
        "meta": {k: str(v) for k, v in meta.items() if v is not None},
    }


class Archive:
    """The raw pages of a generation. Records that no transaction vouches for are cut off when the crawl goes on."""

    def __init__(self, output: Path, frontier: Frontier, *, keep: bool) -> None:
        self.output, self.keep = output, keep
        self.generation = frontier.generation
        self._writer: WarcWriter | None = None
        self._number = self._rows = 0
        self._dirty = False
        if keep:
            self._recover(frontier)

    def _recover(self, frontier: Frontier) -> None:
        committed = frontier.growing_files()
        names = {name for name, _, _ in committed}
        for path in (self.output / "warc").glob(f"part-{self.generation:05d}-*.warc.gz"):
            if f"warc/{path.name}" not in names:
                path.unlink()
        for number, (name, rows, size) in enumerate(committed):
            truncate(self.output / name, size)
            self._number, self._rows = number, rows

    @property
    def name(self) -> str:
        return f"warc/part-{self.generation:05d}-{self._number:06d}.warc.gz"

    def write(self, fetched: Fetched) -> str | None:
        """Append a page; return where it lies: `file:offset:length`."""
        if not self.keep:
            return None
        if self._writer is None:
            self._writer = WarcWriter(self.output / self.name)
        at = datetime.fromtimestamp(fetched.at, UTC)
        reason = "disconnect" if fetched.truncated else None
        offset, length = self._writer.write(fetched.url, fetched.status, fetched.headers, fetched.body, at, truncated=reason, ip=fetched.address)
        self._rows += 1
        self._dirty = True
        return f"{self.name}:{offset}:{length}"

    def save(self, frontier: Frontier) -> None:
        """Note in the open transaction how long the file is; begin another when it is long."""
        if self._writer is None or not self._dirty:
            return
        frontier.save_file(self.name, self._rows, self._writer.size)
        self._dirty = False
        if self._writer.size >= MAX_WARC_BYTES:
            self._writer.close()
            self._writer, self._number, self._rows = None, self._number + 1, 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
