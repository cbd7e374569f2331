"""A stage for the tests of the stage contract: copies documents in units, and can be told to fail at one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmpipe.config import cosmetic
from llmpipe.data.docs import DocUnit
from llmpipe.errors import LlmpipeError
from llmpipe.stage import Stage
from llmpipe.work import Counts, UnitOutput, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    suffix: str = ""
    """Appended to every text."""
    fail_at: str = cosmetic("")
    """Name of a unit to fail at."""
    trace: Path | None = cosmetic(None)
    """File to which each unit that runs adds its name."""


def run(config: Config, work: Work) -> Counts:
    results = work.map(copy, work.doc_units(), shared=config)
    return sum((r.counts for r in results), Counts())


def copy(unit: DocUnit, out: UnitOutput, config: Config) -> Counts:
    if unit.name == config.fail_at:
        raise LlmpipeError(f"told to fail at {unit.name}")
    if config.trace:
        with open(config.trace, "a", encoding="utf-8") as f:
            f.write(unit.name + "\n")
    table = unit.read()
    column = [t + config.suffix for t in table.column("text").to_pylist()]
    out.docs(table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), [column]))
    return Counts(read=table.num_rows, kept=table.num_rows)


STAGE = Stage(name="counting", module=__name__, reads=("docs",), writes="docs", growth="append")
