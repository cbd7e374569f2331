"""What a stage is given and gives back: inputs, units of work, where files go, counts.

    results = work.map(clean_unit, work.doc_units(), shared=rules)      # in a stage's run(config, work)
    return sum((r.counts for r in results), Counts())
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpipe.data.files import atomic_path, sha256_file
from llmpipe.data.manifest import Consumed, Manifest, Shard
from llmpipe.data.remote import Location
from llmpipe.executor import Pool, map_units
from llmpipe.journal import Journal
from llmpipe.log import Progress, log

if TYPE_CHECKING:
    import pyarrow as pa

    from llmpipe.data.docs import DocUnit
    from llmpipe.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a unit or a stage did, in documents (or examples, or sequences)."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By rule."""
    extra: dict[str, int] = field(default_factory=dict)
    """What else the stage counts: redactions by kind, pages by status, tokens."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(read=self.read + other.read, kept=self.kept + other.kept, dropped=_sum(self.dropped, other.dropped), extra=_sum(self.extra, other.extra))


def _sum(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {k: a.get(k, 0) + b.get(k, 0) for k in sorted({*a, *b})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    role: str
    """`0`, `1`, … for `--input`, else `tokenizer` or `model`."""
    path: Location
    kind: str
    manifest: Manifest | None
    shards: list[Shard]
    """What there is to consume, with digests."""
    listed_at: float = 0.0
    """Seconds since the epoch before files were listed and hashed (only where the stage keeps a ledger)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitResult:
    name: str
    counts: Counts
    shards: list[Shard]
    value: Any = None


class UnitOutput:
    """Where a unit's function leaves its files. Names come from the generation and the unit's number: a rerun overwrites."""

    def __init__(self, root: Path, generation: int, number: int, phase: str) -> None:
        self.root, self.stem = root, f"{phase}-{generation:05d}-{number:06d}"
        self.shards: list[Shard] = []
        self.value: Any = None

    def docs(self, table: pa.Table) -> None:
        """Write documents as a shard at the root; nothing when there are none."""
        if table.num_rows:
            from llmpipe.data.docs import write_docs

            self.shards.append(write_docs(self.root / f"{self.stem}.parquet", table))

    def dropped(self, table: pa.Table) -> None:
        """Write what the unit removed, with the rule that did it (DROPPED_SCHEMA)."""
        self.table("dropped", table)

    def table(self, folder: str, table: pa.Table) -> None:
        """Write a side table as `<folder>/<stem>.parquet`; nothing when it is empty."""
        if table.num_rows:
            from llmpipe.data.docs import write_parquet

            shard = write_parquet(self.root / folder / f"{self.stem}.parquet", table)
            self.shards.append(replace(shard, name=f"{folder}/{shard.name}"))

    @contextmanager
    def path(self, name: str, *, rows: int = 0) -> Iterator[Path]:
        """Yield a temporary path for the file `name`, in which `{stem}` is the unit's."""
        name = name.format(stem=self.stem)
        with atomic_path(self.root / name) as tmp:
            yield tmp
        self.shards.append(shard_of(self.root, name, rows))


def release_memory() -> None:
    """Give freed memory back to the system; else a worker grows by a third over its first dozen units."""
    if (pyarrow := sys.modules.get("pyarrow")) is not None:  # a unit that read no table loaded none
        pyarrow.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)


def _run_unit(job: tuple[Any, int], *, function: Callable, root: Path, generation: int, phase: str, shared: Any) -> dict[str, Any]:
    unit, number = job
    out = UnitOutput(root, generation, number, phase)
    counts = function(unit, out, shared)
    release_memory()
    return {"unit": f"{phase}/{unit.name}", "counts": asdict(counts), "shards": [asdict(replace(s, generation=generation)) for s in out.shards], "value": out.value}


@dataclass(slots=True, kw_only=True)
class Work:
    """One run of one stage: its inputs, what is left to do, and where results go."""

    stage: Stage
    output: Path
    inputs: list[Input]
    pending: list[tuple[Input, Shard]]
    """Input shards that no generation has consumed, in order of input and shard."""
    previous: Manifest | None
    generation: int
    seeds: tuple[str, ...]
    workers: int
    journal: Journal
    progress: Progress
    changed: list[tuple[Input, Shard]] = field(default_factory=list)
    """Inputs that changed since they were consumed (only where the stage keeps a ledger)."""
    gone: list[Consumed] = field(default_factory=list)
    """Consumed inputs that are no more (only where the stage keeps a ledger)."""
    kind: str | None = None
    """What the output is, where that follows the input; None: what the stage writes."""
    info: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Shard] = field(default_factory=dict)
    pool: Pool | None = None
    """Worker processes that all phases share; without one, each phase starts its own."""
    log = log

    def input(self, role: str) -> Input | None:
        return next((i for i in self.inputs if i.role == role), None)

    def doc_units(self) -> list[DocUnit]:
        """The row groups of all pending shards of documents."""
        from llmpipe.data.docs import doc_units

        units: list[DocUnit] = []
        for given, shard in self.pending:
            if given.role.isdigit():
                units += doc_units(given.path, [shard], input_number=int(given.role))
        return units

    def map(self, function: Callable[[Any, UnitOutput, Any], Counts], units: Sequence[Any], *, phase: str = "part", shared: Any = None) -> list[UnitResult]:
        """Run `function(unit, out, shared)` for each unit that the journal doesn't hold; return all results in order of units.

        Each finished unit is journalled with its files' digests, so a kill loses at most the units in flight.
        """
        results: dict[int, dict[str, Any]] = {}
        for number, unit in enumerate(units):
            if (record := self.journal.get(f"{phase}/{unit.name}", self.output)) is not None:
                results[number] = record
        todo = [(unit, number) for number, unit in enumerate(units) if number not in results]
        call = partial(_run_unit, function=function, root=self.output, generation=self.generation, phase=phase, shared=shared)
        for index, record in map_units(call, todo, workers=self.workers, pool=self.pool):
            self.journal.add(record)
            results[todo[index][1]] = record
            self.progress.update(len(results), len(units), phase=phase)
        ordered = [_unit_result(results[n]) for n in range(len(units))]
        for result in ordered:
            self.files.update((s.name, s) for s in result.shards)
        return ordered

    def add_file(self, path: Path, *, rows: int = 0) -> Shard:
        """List a file below the output, written by the stage itself, in the manifest."""
        shard = replace(shard_of(self.output, str(path.relative_to(self.output)), rows), generation=self.generation)
        self.files[shard.name] = shard
        return shard


def _unit_result(record: dict[str, Any]) -> UnitResult:
    return UnitResult(name=record["unit"], counts=Counts(**record["counts"]), shards=[Shard(**s) for s in record["shards"]], value=record["value"])


def shard_of(root: Path, name: str, rows: int) -> Shard:
    path = root / name
    return Shard(name=name, rows=rows, bytes=path.stat().st_size, sha256=sha256_file(path))
