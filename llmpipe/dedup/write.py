"""Write what dedup decided: the documents that stay, those that go, and why.

`write_part(part, out, None)` is run for every `Part`, in worker processes. Reads one row group of the input.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from llmpipe.data.docs import SCHEMA, DocUnit, docs_table, dropped_table
from llmpipe.work import Counts, UnitOutput


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
    rows: list[int] = field(default_factory=list)
    """Rows that stay."""
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


def write_part(part: Part, out: UnitOutput, _: None) -> Counts:
    extra = {"superseded": part.superseded, "gone": len(part.gone), "elected": len(part.rows) if part.again else 0}
    counts = Counts(
        read=part.read,
        kept=len(part.rows),
        dropped=dict(sorted(Counter(d.rule for d in part.dropped).items())),
        extra={k: n for k, n in extra.items() if n},
    )
    if part.unit is None:
        out.docs(docs_table({"id": i, "text": "", "op": "gone"} for i in part.gone))
        return counts
    if not part.rows and not part.dropped:
        return counts
    table = part.unit.read(SCHEMA.names)
    docs = table.take(pa.array(part.rows, pa.int64())).select(SCHEMA.names).cast(SCHEMA)
    out.docs(docs.set_column(SCHEMA.get_field_index("op"), SCHEMA.field("op"), pa.array(part.ops, pa.string())))
    lost = table.select(["id", "url", "text"]).take(pa.array([d.row for d in part.dropped], pa.int64())).to_pylist()
    out.dropped(
        dropped_table(
            {
                "id": row["id"],
                "url": row["url"],
                "stage": "dedup",
                "rule": why.rule,
                "value": why.similarity,
                "threshold": why.threshold,
                "partner_id": why.partner_id,
                "snippet": row["text"][:200],
            }
            for row, why in zip(lost, part.dropped, strict=True)
        )
    )
    return counts
