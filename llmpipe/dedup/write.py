"""Write what dedup decided: the documents that stay, those that go, and why; and what is cut out of those that stay.

`write_part(part, out, config, passages=…)` is run for every `Part`, in worker processes. Reads one row group of the input.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from llmpipe.data.docs import SCHEMA, SNIPPET_CHARS, DocUnit, docs_table, dropped_table
from llmpipe.data.ids import content_hash
from llmpipe.work import Counts, UnitOutput

if TYPE_CHECKING:
    from llmpipe.dedup.passages import Passages, Spans

CUT = pa.schema(
    [
        ("id", pa.string()),
        ("rule", pa.string()),  # line, paragraph or substring
        ("start", pa.int64()),  # characters of the text before
        ("end", pa.int64()),
        ("partner_id", pa.string()),  # of the document with the first copy of a substring
        ("snippet", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    row: int
    rule: str
    similarity: float
    threshold: float
    partner_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The decisions on one row group, or the ids that are gone."""

    name: str
    unit: DocUnit | None = None
    first: int = 0
    """Number of its first row over all generations."""
    rows: list[int] = field(default_factory=list)
    """Rows that stay."""
    numbers: list[int] = field(default_factory=list)
    """The same, over all generations."""
    ops: list[str] = field(default_factory=list)
    """What each of them is to the output: new or changed."""
    dropped: list[Dropped] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    """Ids that were in the output and are no more."""
    read: int = 0
    superseded: int = 0
    """Rows of the input that a later row of the same id replaces."""
    again: bool = False
    """Its documents were dropped before, for one that is gone."""


def write_part(part: Part, out: UnitOutput, config: Any, *, passages: Passages | None = None) -> Counts:
    extra = {"superseded": part.superseded, "gone": len(part.gone), "elected": len(part.rows) if part.again else 0}
    if part.unit is None:
        out.docs(docs_table({"id": i, "text": "", "op": "gone"} for i in part.gone))
        return Counts(extra={k: n for k, n in extra.items() if n})
    if not part.rows and not part.dropped:
        return Counts(read=part.read, extra={k: n for k, n in extra.items() if n})
    table = part.unit.read(SCHEMA.names)
    docs = table.take(pa.array(part.rows, pa.int64())).select(SCHEMA.names).cast(SCHEMA)
    docs = docs.set_column(SCHEMA.get_field_index("op"), SCHEMA.field("op"), pa.array(part.ops, pa.string()))
    short: list[dict[str, Any]] = []
    if passages is not None and part.rows:
        docs, short, cut_counts = _cut(part, docs, out, config, passages)
        extra |= cut_counts
    out.docs(docs)
    lost = table.select(["id", "url", "text"]).take(pa.array([d.row for d in part.dropped], pa.int64())).to_pylist()
    reasons = [{**row, "rule": why.rule, "value": why.similarity, "threshold": why.threshold, "partner_id": why.partner_id} for row, why in zip(lost, part.dropped, strict=True)]
    rows = [{**r, "stage": "dedup", "snippet": r["text"][:SNIPPET_CHARS]} for r in (*reasons, *short)]
    out.dropped(dropped_table({k: v for k, v in r.items() if k != "text"} for r in rows))
    return Counts(
        read=part.read,
        kept=len(part.rows) - len(short),
        dropped=dict(sorted(Counter(r["rule"] for r in rows).items())),
        extra={k: n for k, n in extra.items() if n},
    )


def _cut(part: Part, docs: pa.Table, out: UnitOutput, config: Any, passages: Passages) -> tuple[pa.Table, list[dict[str, Any]], dict[str, int]]:
    """Cut passages out of the texts; return the documents, those of which too little is left, and counts by rule."""
    ids, urls, texts = (docs.column(c).to_pylist() for c in ("id", "url", "text"))
    cuts = passages.cuts(part, texts, urls, config)
    min_left = max((c.min_left for c in (config.lines, config.substrings) if c is not None), default=0)
    records, short, stays, ops = [], [], [], list(part.ops)
    for i, spans in enumerate(cuts):
        if not spans:
            stays.append(True)
            continue
        before = texts[i]
        texts[i] = without(before, spans)
        records += [{"id": ids[i], "rule": rule, "start": a, "end": b, "partner_id": passages.id_of(row), "snippet": before[a:b][:SNIPPET_CHARS]} for a, b, rule, row in spans]
        left = len(texts[i])
        stays.append(left >= min_left)
        if left < min_left:
            short.append({"id": ids[i], "url": urls[i], "text": before, "rule": "short_after_cuts", "value": left, "threshold": min_left, "partner_id": None})
            if ops[i] == "changed":  # an earlier version is in the output
                ops[i], stays[-1], texts[i] = "gone", True, ""
    out.table("cut", pa.Table.from_pylist(records, schema=CUT))
    changed = {"text": pa.array(texts, pa.string()), "content_hash": pa.array([content_hash(t) for t in texts], pa.string()), "op": pa.array(ops, pa.string())}
    for name, column in changed.items():
        docs = docs.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    counts = Counter(f"cut_{r['rule']}s" for r in records)
    counts["cut_chars"] = sum(b - a for spans in cuts for a, b in _union(spans))
    return docs.filter(pa.array(stays)), short, dict(counts)


def without(text: str, spans: Spans) -> str:
    """Take spans out. Of a line that is gone its end goes too, and blank lines that come together are one."""
    pieces, at = [], 0
    tail = "\n\n"  # what stands before the next piece
    for start, end in [*_union(spans), (len(text), len(text))]:
        piece = text[at:start]
        if at:
            piece = piece.lstrip("\n") if tail.endswith("\n\n") else piece.removeprefix("\n") if tail.endswith("\n") else piece
        pieces.append(piece)
        tail = (tail + piece[-2:])[-2:]
        at = end
    return "".join(pieces).strip("\n")


def _union(spans: Spans) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end, _, _ in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
