"""A stage is data and a function: one row in STAGES, a `Config`, and `run(config, work) -> Counts`.

    outcome = run_stage(STAGES["clean"], config, Request(inputs=(Path("docs"),), output=Path("cleaned")), Options(workers=2))

`run_stage` takes the lock, compares what is wanted with what lies on disk (see `survey`), calls the stage's `run` with
what is left to do, and publishes the result by replacing `manifest.json`. Two hops: cli.py -> run_stage -> <stage>/stage.py:run.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pyarrow as pa

import llmpipe
from llmpipe.config import diff, recipe_of
from llmpipe.data.docs import DocUnit, doc_units, write_docs, write_parquet
from llmpipe.data.files import atomic_path, atomic_write, child, digest_of, directory_lock, fsync_dir, remove_stale_tmp, sha256_file
from llmpipe.data.manifest import NAME as MANIFEST
from llmpipe.data.manifest import Consumed, Generation, Manifest, Shard, find_manifest, read_manifest, write_manifest
from llmpipe.errors import InputError, LlmpipeError, UsageError
from llmpipe.executor import map_units
from llmpipe.log import Progress, log

Kind = Literal["sites", "files", "docs", "tokenizer", "tokens", "model", "rows", "report"]
Growth = Literal["append", "frozen", "retrain", "rerun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    name: str
    module: str
    reads: tuple[Kind, ...]
    """What `--input` may be; several kinds are alternatives."""
    writes: Kind
    growth: Growth
    """What new input means: append a generation; keep what is there; train anew, which costs hours and so wants --force
    or a run directory; or just make it anew."""
    needs: tuple[str, ...] = ()
    """Further inputs by role: tokenizer, model."""
    version: int = 1
    """Raise it when the same config gives another output."""
    ledger: bool = False
    """The stage itself handles inputs that changed or vanished (ingest)."""
    input_optional: bool = False
    help: str = ""

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)


_TABLE = (
    Stage(name="crawl", module="llmpipe.crawl.stage", reads=("sites",), writes="docs", growth="append", input_optional=True, help="Collect web sites politely into documents"),
    Stage(name="ingest", module="llmpipe.ingest.stage", reads=("files",), writes="docs", growth="append", ledger=True, help="Read files and folders into documents"),
    Stage(name="clean", module="llmpipe.clean.stage", reads=("docs",), writes="docs", growth="append", help="Repair text, drop what is not worth training on, redact personal data"),
    Stage(name="dedup", module="llmpipe.dedup.stage", reads=("docs",), writes="docs", growth="append", help="Drop exact and near duplicates"),
    Stage(name="tokenizer", module="llmpipe.tokenizer.stage", reads=("docs",), writes="tokenizer", growth="frozen", help="Train a tokenizer"),
    Stage(name="tokenize", module="llmpipe.tokenizer.encode", reads=("docs",), needs=("tokenizer",), writes="tokens", growth="append", help="Turn documents into token shards"),
    Stage(name="pretrain", module="llmpipe.pretrain.stage", reads=("tokens",), writes="model", growth="retrain", help="Train a language model from scratch"),
    Stage(name="finetune", module="llmpipe.finetune.stage", reads=("rows", "docs"), needs=("model",), writes="model", growth="retrain", help="Train a model for a task on labelled rows"),
    Stage(name="eval", module="llmpipe.evaluate.stage", reads=("rows", "docs", "tokens"), needs=("model",), writes="report", growth="rerun", input_optional=True, help="Score a model"),
    Stage(name="generate", module="llmpipe.evaluate.generate", reads=("rows",), needs=("model",), writes="report", growth="rerun", input_optional=True, help="Continue a prompt"),
    Stage(name="export", module="llmpipe.export.stage", reads=(), needs=("model",), writes="model", growth="rerun", input_optional=True, help="Write a model in another format"),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _TABLE}
"""Every stage, in pipeline order."""


# --- what a stage is given and gives back --------------------------------------------------------------------------


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
    path: Path
    kind: str
    manifest: Manifest | None
    shards: list[Shard]
    """What there is to consume, with digests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one command asks for, beside its config."""

    output: Path
    inputs: tuple[Path, ...] = ()
    tokenizer: Path | None = None
    model: Path | None = None
    seeds: tuple[str, ...] = ()
    """URLs, for crawl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    workers: int = 0
    """Processes; 0: one per core."""
    executor: Literal["processes"] = "processes"
    force: bool = False
    """Rebuild what is stale or there already."""
    dry_run: bool = False
    owned: bool = False
    """The output lies in the run directory of a pipeline, which may rebuild it."""


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
            self.shards.append(write_docs(self.root / f"{self.stem}.parquet", table))

    def dropped(self, table: pa.Table) -> None:
        """Write what the unit removed, with the rule that did it (DROPPED_SCHEMA)."""
        self.table("dropped", table)

    def table(self, folder: str, table: pa.Table) -> None:
        """Write a side table as `<folder>/<stem>.parquet`; nothing when it is empty."""
        if table.num_rows:
            shard = write_parquet(self.root / folder / f"{self.stem}.parquet", table)
            self.shards.append(replace(shard, name=f"{folder}/{shard.name}"))

    @contextmanager
    def path(self, name: str, *, rows: int = 0) -> Iterator[Path]:
        """Yield a temporary path for the file `name`, in which `{stem}` is the unit's."""
        name = name.format(stem=self.stem)
        with atomic_path(self.root / name) as tmp:
            yield tmp
        self.shards.append(_shard(self.root, name, rows))


def _run_unit(job: tuple[Any, int], *, function: Callable, root: Path, generation: int, phase: str, shared: Any) -> dict[str, Any]:
    unit, number = job
    out = UnitOutput(root, generation, number, phase)
    counts = function(unit, out, shared)
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
    info: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Shard] = field(default_factory=dict)
    log = log

    def input(self, role: str) -> Input | None:
        return next((i for i in self.inputs if i.role == role), None)

    def doc_units(self) -> list[DocUnit]:
        """The row groups of all pending shards of documents."""
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
        for index, record in map_units(call, todo, workers=self.workers):
            self.journal.add(record)
            results[todo[index][1]] = record
            self.progress.update(len(results), len(units), phase=phase)
        ordered = [_unit_result(results[n]) for n in range(len(units))]
        for result in ordered:
            self.files.update((s.name, s) for s in result.shards)
        return ordered

    def add_file(self, path: Path, *, rows: int = 0) -> Shard:
        """List a file below the output, written by the stage itself, in the manifest."""
        shard = replace(_shard(self.output, str(path.relative_to(self.output)), rows), generation=self.generation)
        self.files[shard.name] = shard
        return shard


def _unit_result(record: dict[str, Any]) -> UnitResult:
    return UnitResult(name=record["unit"], counts=Counts(**record["counts"]), shards=[Shard(**s) for s in record["shards"]], value=record["value"])


def _shard(root: Path, name: str, rows: int) -> Shard:
    path = root / name
    return Shard(name=name, rows=rows, bytes=path.stat().st_size, sha256=sha256_file(path))


class Journal:
    """`state/journal.jsonl`: what an unfinished generation has done. One line a unit, fsynced; a torn last line is dropped.

    Its first line names the recipe and the inputs, so that a later run knows whether it may go on.
    """

    def __init__(self, output: Path, header: dict[str, Any]) -> None:
        self.path = journal_path(output)
        self.records: dict[str, dict[str, Any]] = {}
        old = read_journal(output)
        if old and old[0] == header:
            self.records = {r["unit"]: r for r in old[1:]}
            kept = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in old)
        else:
            kept = json.dumps(header, ensure_ascii=False) + "\n"
        with atomic_path(self.path) as tmp:
            tmp.write_text(kept, encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["unit"]] = record

    def get(self, unit: str, output: Path) -> dict[str, Any] | None:
        """Return a unit's record when all its files are there still, in their size."""
        record = self.records.get(unit)
        if record is None:
            return None
        for shard in record["shards"]:
            path = output / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                return None
        return record

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink()


def journal_path(output: Path) -> Path:
    return output / "state" / "journal.jsonl"


def read_journal(output: Path) -> list[dict[str, Any]]:
    try:
        lines = journal_path(output).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records if records and "fingerprint" in records[0] else []


# --- what is wanted against what lies there ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a stage's output is, measured against recipe and inputs."""

    state: Literal["absent", "fresh", "behind", "partial", "stale", "foreign"]
    why: list[str]
    """For a person: the differing keys, the new shards."""
    fingerprint: str
    recipe: dict[str, Any]
    header: dict[str, Any]
    pending: list[tuple[Input, Shard]]
    changed: list[tuple[Input, Shard]]
    gone: list[Consumed]
    previous: Manifest | None


def survey(stage: Stage, config: Any, inputs: list[Input], output: Path) -> Survey:
    """Compare recipe and inputs with the manifest and the journal in `output`. Reads only.

    - fresh: same recipe, all inputs consumed. behind: same recipe, new input shards, which alone are processed.
    - partial: an unfinished run of the same recipe, to be continued. stale: another recipe, or an input that changed.
    - foreign: something is there that llmpipe did not make.
    """
    recipe = {"stage": stage.name, "version": stage.version, "config": recipe_of(config)}
    fingerprint = digest_of(recipe)
    previous, journal = find_manifest(output), read_journal(output)
    if previous is None and len(journal) == 1 and journal[0]["fingerprint"] and _is_empty(output):
        journal = []  # a run that failed before its first unit (a wrong field name, say) is no reason to refuse the next
    here = {(i.role, s.name): (i, s) for i in inputs for s in i.shards}
    consumed = {(c.input, c.name): c for c in previous.consumed} if previous else {}
    pending = [here[key] for key in here if key not in consumed]
    changed = [here[key] for key in here if key in consumed and here[key][1].sha256 != consumed[key].sha256]
    gone = [c for key, c in consumed.items() if key not in here]
    if stage.growth in ("rerun", "retrain"):  # all of the input makes the output anew
        header_shards = sorted([i.role, s.name, s.sha256] for i in inputs for s in i.shards)
    else:
        header_shards = sorted([i.role, s.name, s.sha256] for i, s in [*pending, *changed])
    header = {"stage": stage.name, "fingerprint": fingerprint, "recipe": recipe, "generation": len(previous.generations) if previous else 0, "pending": digest_of(header_shards)}
    make = partial(Survey, fingerprint=fingerprint, recipe=recipe, header=header, pending=pending, changed=changed, gone=gone, previous=previous)

    if previous is None and not journal:
        foreign = sorted(p.name for p in output.iterdir() if p.name not in (".lock", "state")) if output.is_dir() else []
        return make(state="foreign", why=[f"holds {', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}"]) if foreign else make(state="absent", why=[])
    if previous is not None and previous.stage != stage.name:
        return make(state="foreign", why=[f"was made by llmpipe {previous.stage}"])
    old = previous.recipe if previous else journal[0]["recipe"]
    if (previous.fingerprint if previous else journal[0]["fingerprint"]) != fingerprint:
        return make(state="stale", why=diff(old, recipe) if old else ["a rebuild was cut short"])
    if (changed or gone) and not stage.ledger:
        faults = [f"input {i.path / s.name} changed" for i, s in changed] + [f"input {c.name} is gone" for c in gone]
        return make(state="stale", why=faults[:5])
    if journal and journal[0] == header:
        return make(state="partial", why=[f"{len(journal) - 1} units done"])
    if journal and previous is None:
        return make(state="stale", why=["the inputs changed since the unfinished run began"])
    if pending or changed or gone:
        why = [f"new input {i.path / s.name}" for i, s in pending] + [f"changed {s.name}" for _, s in changed] + [f"gone {c.name}" for c in gone]
        if stage.growth == "frozen":
            return make(state="fresh", why=[f"kept, though there are {len(why)} new inputs: it is frozen, --force makes it anew"])
        return make(state="behind" if stage.growth == "append" else "stale", why=why[:3] + ([f"… {len(why) - 3} more"] if len(why) > 3 else []))
    return make(state="fresh", why=[])


def _is_empty(output: Path) -> bool:
    """Whether an output holds nothing but a lock and a journal."""
    return not {str(p.relative_to(output)) for p in output.rglob("*")} - {".lock", "state", "state/journal.jsonl"}


# --- running -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    stage: str
    state: str
    """What the output was before: fresh means that nothing was done."""
    why: list[str]
    output: Path
    manifest: Manifest | None
    counts: Counts
    seconds: float
    plan: dict[str, Any] | None = None


def run_stage(stage: Stage, config: Any, request: Request, options: Options) -> Outcome:
    """Bring `request.output` up to date with `config` and the inputs; do nothing when it is.

    Raises `LockedError` when another run holds the output, `UsageError` for a foreign or stale one (unless `force`),
    `InputError` for inputs that are missing, broken or changed under our feet.
    """
    start, began = time.monotonic(), datetime.now(UTC)
    module = stage.load()
    if hasattr(module, "resolve"):
        config = module.resolve(config)
    output = request.output
    inputs = find_inputs(stage, request)
    if options.dry_run:
        return _dry_run(stage, module, config, request, inputs, options)
    _refuse_nesting(request)
    existed = output.exists()
    try:
        with directory_lock(output):
            found = survey(stage, config, inputs, output)
            found = _settle(stage, found, output, options, config, inputs)
            progress = Progress(stage.name)
            work = _work(stage, found, request, inputs, options, progress)
            if found.state == "fresh" and not (hasattr(module, "due") and module.due(config, work)):
                journal_path(output).unlink(missing_ok=True)  # left by a kill between the manifest and the journal's end
                for line in found.why:
                    log.info("%s: %s", stage.name, line)
                return Outcome(stage=stage.name, state="fresh", why=found.why, output=output, manifest=found.previous, counts=Counts(), seconds=time.monotonic() - start)
            if found.state == "partial":
                log.info("%s: going on where a run was cut short (%s)", stage.name, "; ".join(found.why))
            for folder in (output, *(output / name for name in SIDE_FOLDERS)):
                remove_stale_tmp(folder)
            work.journal = Journal(output, found.header)
            try:
                counts = module.run(config, work)
            finally:
                work.journal.close()
                progress.close()
            manifest = _publish(found, work, counts, began, time.monotonic() - start)
            work.journal.remove()
            return Outcome(stage=stage.name, state=found.state, why=found.why, output=output, manifest=manifest, counts=counts, seconds=time.monotonic() - start)
    finally:
        if not existed:  # a refused or failed start leaves no empty directory behind
            with suppress(OSError):
                if {p.name for p in output.iterdir()} <= {".lock"}:
                    (output / ".lock").unlink(missing_ok=True)
                    output.rmdir()


def _work(stage: Stage, found: Survey, request: Request, inputs: list[Input], options: Options, progress: Progress) -> Work:
    again = stage.growth in ("rerun", "retrain")
    return Work(
        stage=stage,
        output=request.output,
        inputs=inputs,
        pending=[(i, s) for i in inputs for s in i.shards] if again else found.pending,
        changed=found.changed,
        gone=found.gone,
        previous=None if again else found.previous,
        generation=0 if again else len(found.previous.generations) if found.previous else 0,
        seeds=request.seeds,
        workers=options.workers or os.cpu_count() or 1,
        journal=None,  # type: ignore[arg-type]  # set under the lock, once it is known that there is work
        progress=progress,
    )


def _settle(stage: Stage, found: Survey, output: Path, options: Options, config: Any, inputs: list[Input]) -> Survey:
    """Refuse what must not be overwritten; clear what may be rebuilt, and survey again."""
    if found.state == "foreign":
        raise UsageError(f"{output} is not an output of llmpipe {stage.name}: it {found.why[0]}", hint="choose another --output; nothing there was touched")
    only_input = found.previous is not None and found.previous.fingerprint == found.fingerprint
    rebuild = found.state == "stale" and (options.owned or options.force or (only_input and stage.growth == "rerun"))
    if found.state == "stale" and not rebuild:
        kind = InputError if only_input else UsageError
        raise kind(
            f"{output} was made with another {'input' if only_input else 'recipe'}:\n  " + "\n  ".join(found.why),
            hint="--force makes it anew; or choose another --output",
        )
    if rebuild or (options.force and found.state != "absent"):
        if found.why:
            log.info("%s: rebuilding, since %s", stage.name, "; ".join(found.why))
        clear(output)
        return survey(stage, config, inputs, output)
    return found


SIDE_FOLDERS = ("dropped", "values", "index", "hosts", "warc", "checkpoints", "samples", "splits", "tokenizer", "state")
"""What an output may hold beside its root. `state` last: it holds the journal."""


_UNIT_FILES = "*-[0-9][0-9][0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9][0-9].parquet"


def clear(output: Path) -> None:
    """Remove what llmpipe made in `output`, and nothing else.

    The journal says first that a rebuild has begun, then the manifest goes: a kill in between leaves a directory that
    is known as ours and unfinished, never a manifest that lists files which are gone.
    """
    manifest = find_manifest(output)
    names = {s.name for s in manifest.shards} if manifest else set()
    for record in read_journal(output)[1:]:
        names |= {s["name"] for s in record["shards"]}
    atomic_write(journal_path(output), json.dumps({"fingerprint": "", "recipe": {}}) + "\n")
    (output / MANIFEST).unlink(missing_ok=True)
    for name in names:
        child(output, name).unlink(missing_ok=True)
    for path in output.glob(_UNIT_FILES):
        path.unlink()
    (output / "metrics.jsonl").unlink(missing_ok=True)
    for folder in SIDE_FOLDERS:
        shutil.rmtree(output / folder, ignore_errors=True)
    remove_stale_tmp(output)
    fsync_dir(output)


def _publish(found: Survey, work: Work, counts: Counts, began: datetime, seconds: float) -> Manifest:
    previous = work.previous
    generation = Generation(
        number=work.generation,
        counts=asdict(counts),
        made={"at": began.isoformat(timespec="seconds"), "seconds": round(seconds, 3), "host": socket.gethostname(), "llmpipe": llmpipe.__version__, "commit": _commit()},
    )
    files = {s.name: s for s in previous.shards} if previous else {}
    files.update(work.files)
    consumed = {(c.input, c.name): c for c in previous.consumed} if previous else {}
    for c in found.gone:
        consumed.pop((c.input, c.name), None)
    for given, shard in [*work.pending, *found.changed]:
        consumed[given.role, shard.name] = Consumed(input=given.role, name=shard.name, sha256=shard.sha256, generation=work.generation)
    manifest = Manifest(
        stage=work.stage.name,
        kind=work.stage.writes,
        recipe=found.recipe,
        fingerprint=found.fingerprint,
        consumed=[consumed[k] for k in sorted(consumed)],
        generations=[*(previous.generations if previous else []), generation],
        shards=[files[k] for k in sorted(files)],
        info={**(previous.info if previous else {}), **work.info},
    )
    write_manifest(work.output, manifest)
    _sweep(work.output, files)
    return manifest


def _sweep(output: Path, listed: dict[str, Shard]) -> None:
    """Remove unit files that no manifest lists (of an attempt with other input), so that reading `OUTPUT/*.parquet` is right in any tool."""
    for pattern in (_UNIT_FILES, *(f"{folder}/{_UNIT_FILES}" for folder in SIDE_FOLDERS)):
        for path in output.glob(pattern):
            if str(path.relative_to(output)) not in listed:
                path.unlink()


def _commit() -> str | None:
    """The git commit of the installed llmpipe, if it runs from a checkout."""
    try:
        out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None


def _dry_run(stage: Stage, module: ModuleType, config: Any, request: Request, inputs: list[Input], options: Options) -> Outcome:
    found = survey(stage, config, inputs, request.output)
    work = _work(stage, found, request, inputs, options, Progress(stage.name))
    plan: dict[str, Any] = {"stage": stage.name, "output": str(request.output), "state": found.state, "why": found.why, "pending": len(work.pending)}
    plan["inputs"] = [{"role": i.role, "path": str(i.path), "kind": i.kind, "shards": len(i.shards), "rows": sum(s.rows for s in i.shards)} for i in inputs]
    if hasattr(module, "plan"):
        plan.update(module.plan(config, work))
    return Outcome(stage=stage.name, state=found.state, why=found.why, output=request.output, manifest=found.previous, counts=Counts(), seconds=0.0, plan=plan)


def _refuse_nesting(request: Request) -> None:
    output = request.output.resolve()
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {request.output} is a file", hint="name a directory; it is made if needed")
    for path in [*request.inputs, request.model, request.tokenizer]:
        if path is not None and path.resolve() == output:
            raise UsageError(f"--output {request.output} is also an input", hint="choose another --output")


# --- inputs --------------------------------------------------------------------------------------------------------


def find_inputs(stage: Stage, request: Request) -> list[Input]:
    """Resolve and check every input of a request; raise `InputError` or `UsageError` naming what is missing."""
    if not request.inputs and not stage.input_optional:
        raise UsageError(f"{stage.name} needs an --input ({' or '.join(stage.reads)})", hint=f"llmpipe {stage.name} --help")
    inputs = [_input(str(n), path, stage.reads) for n, path in enumerate(request.inputs)]
    for role in stage.needs:
        path = getattr(request, role)
        if path is None:
            raise UsageError(f"{stage.name} needs --{role} DIR", hint=f"llmpipe {stage.name} --help")
        inputs.append(_input(role, path, (role,)))  # type: ignore[arg-type]
    return inputs


def _input(role: str, path: Path, kinds: Sequence[str]) -> Input:
    """Recognise one input. Documents, tokenizers and tokens need a manifest; a model may be any Hugging Face directory, rows any file."""
    manifest = find_manifest(path) if path.is_dir() and kinds != ("files",) else None
    if manifest is not None and manifest.kind in kinds:
        shards = manifest.doc_shards() if manifest.kind == "docs" else [s for s in manifest.shards if "/" not in s.name]
        return Input(role=role, path=path, kind=manifest.kind, manifest=manifest, shards=shards)
    if "files" in kinds:
        return Input(role=role, path=path, kind="files", manifest=None, shards=_files(path))
    if manifest is None and "rows" in kinds and path.is_file():
        return Input(role=role, path=path, kind="rows", manifest=None, shards=[replace(_shard(path.parent, path.name, 0), name=path.name)])
    if manifest is None and "model" in kinds and (path / "config.json").is_file():
        names = sorted(p.name for p in path.iterdir() if p.is_file() and re.fullmatch(r".*\.(safetensors|json)", p.name))
        return Input(role=role, path=path, kind="model", manifest=None, shards=[_shard(path, n, 0) for n in names])
    if not path.exists():
        raise InputError(f"{path}: no such file or directory", hint=_how_to_make(kinds))
    wanted = next((k for k in kinds if k in ("docs", "tokens", "tokenizer", "model")), None)
    if wanted and path.is_dir():
        read_manifest(path, kind=wanted)  # raises with the right words
    raise InputError(f"{path} is not {' or '.join(kinds)}", hint=_how_to_make(kinds))


def _how_to_make(kinds: Sequence[str]) -> str | None:
    makers = [s.name for s in STAGES.values() if s.writes in kinds]
    return f"llmpipe {' or '.join(makers)} makes {' or '.join(k for k in kinds if any(STAGES[m].writes == k for m in makers))}" if makers else None


def _files(path: Path) -> list[Shard]:
    """List a file, or the files below a folder (hidden ones and links that lead out of it left out), with digests."""
    if path.is_file():
        return [_shard(path.parent, path.name, 0)]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory", hint="llmpipe ingest takes files and folders")
    root = path.resolve()
    names = []
    for found in sorted(path.rglob("*")):
        relative = found.relative_to(path)
        if not any(part.startswith(".") for part in relative.parts) and found.is_file() and found.resolve().is_relative_to(root):
            names.append(relative.as_posix())
    return [_shard(path, name, 0) for name in names]


_FULL = ("no space left on device", "disk is full", "os error 28")
_TOO_LARGE = ("file too large", "os error 27")


def describe(error: Exception) -> LlmpipeError | None:
    """Turn a full disk or a file-size limit, in the words of whichever library met it, into an error with a way out."""
    number, words = getattr(error, "errno", None), str(error).lower()
    where = f" while writing {error.filename}" if getattr(error, "filename", None) else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or any(w in words for w in _FULL):
        return LlmpipeError(f"no space left on the disk{where}", hint="free some space and run the same command again; what was finished is kept")
    if number == errno.EFBIG or any(w in words for w in _TOO_LARGE):
        return LlmpipeError(f"a file would pass the file-size limit{where}", hint="raise it (ulimit -f) and run the same command again; what was finished is kept")
    return None
