"""A stage is data and a function: one row in STAGES, a `Config`, and `run(config, work) -> Counts`.

    outcome = run_stage(STAGES["clean"], config, Request(inputs=(Path("docs"),), output=Path("cleaned")), Options(workers=2))

`run_stage` takes the lock, compares what is wanted with what lies on disk (see `survey`), calls the stage's `run` with
what is left to do, and publishes the result by replacing `manifest.json`. Two hops: cli.py -> run_stage -> <stage>/stage.py:run.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import llmpipe
from llmpipe.data.files import atomic_write, child, directory_lock, fsync_dir, remove_stale_tmp
from llmpipe.data.manifest import NAME as MANIFEST
from llmpipe.data.manifest import Consumed, Generation, Manifest, Shard, find_manifest, write_manifest
from llmpipe.data.remote import Location
from llmpipe.errors import InputError, UsageError
from llmpipe.executor import Pool
from llmpipe.journal import Journal, journal_path, read_journal
from llmpipe.log import Progress, log
from llmpipe.survey import Survey, find_inputs, survey
from llmpipe.training import parallel
from llmpipe.work import Counts, Input, Work

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
    Stage(name="clean", module="llmpipe.clean.stage", reads=("docs",), writes="docs", growth="append", version=2, help="Repair text, drop what is not worth training on, redact personal data"),
    Stage(name="dedup", module="llmpipe.dedup.stage", reads=("docs",), writes="docs", growth="append", version=2, help="Drop duplicates, cut repeated passages, keep evaluation sets out"),
    Stage(name="augment", module="llmpipe.augment.stage", reads=("docs", "rows"), writes="docs", growth="append", help="Add changed copies to training data, marked and kept out of evaluation"),
    Stage(name="tokenizer", module="llmpipe.tokenizer.stage", reads=("docs",), writes="tokenizer", growth="frozen", version=2, help="Train a tokenizer"),
    Stage(name="tokenize", module="llmpipe.tokenizer.encode", reads=("docs",), needs=("tokenizer",), writes="tokens", growth="append", help="Turn documents into token shards"),
    Stage(name="pretrain", module="llmpipe.pretrain.stage", reads=("tokens",), writes="model", growth="retrain", help="Train a language model from scratch"),
    Stage(name="finetune", module="llmpipe.finetune.stage", reads=("rows", "docs"), needs=("model",), writes="model", growth="retrain", help="Train a model for a task on labelled rows"),
    Stage(name="eval", module="llmpipe.evaluate.stage", reads=("rows", "docs", "tokens"), needs=("model",), writes="report", growth="rerun", input_optional=True, help="Score a model"),
    Stage(name="generate", module="llmpipe.evaluate.generate", reads=("rows",), needs=("model",), writes="report", growth="rerun", input_optional=True, help="Continue a prompt"),
    Stage(name="export", module="llmpipe.export.stage", reads=(), needs=("model",), writes="model", growth="rerun", input_optional=True, help="Write a model in another format"),
)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _TABLE}
"""Every stage, in pipeline order."""


# --- what one command asks for --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one command asks for, beside its config."""

    output: Path
    inputs: tuple[Location, ...] = ()
    """Local paths; for ingest URLs too."""
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
    if not parallel.launched():
        return _run_alone(stage, config, request, options)
    if stage.name not in PARALLEL:
        raise UsageError(f"torchrun has started several processes, and {stage.name} is one", hint="run it without torchrun; its --workers use the cores")
    return _run_together(stage, config, request, options)


PARALLEL = ("pretrain",)
"""What torchrun may start."""


def _run_together(stage: Stage, config: Any, request: Request, options: Options) -> Outcome:
    """One of torchrun's processes: the first locks, surveys and publishes; the others work when it says so."""
    module = stage.load()
    if hasattr(module, "resolve"):
        config = module.resolve(config)
    world = parallel.join(device=config.device)
    told: list[bool] = []

    def tell(go: bool) -> None:
        if not told:
            told.append(go)
            world.first([float(go)])

    try:
        if world.leads:
            try:
                return _run_alone(stage, config, request, options, before=lambda: tell(True))
            finally:
                tell(False)
        if world.first([0.0])[0]:
            work = Work(
                stage=stage, output=request.output, inputs=find_inputs(stage, request), pending=[], previous=None, generation=0, seeds=(), workers=1,
                journal=None, progress=Progress(stage.name),  # type: ignore[arg-type]
            )
            module.run(config, work)
        return Outcome(stage=stage.name, state="followed", why=[], output=request.output, manifest=None, counts=Counts(), seconds=0.0)
    finally:
        parallel.leave()


def _run_alone(stage: Stage, config: Any, request: Request, options: Options, *, before: Callable[[], None] | None = None) -> Outcome:
    """Do what `run_stage` says; call `before` when it is certain that the stage will run."""
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
                log.info("%s: going on where a run was cut short", stage.name)
            for folder in (output, *(output / name for name in SIDE_FOLDERS)):
                remove_stale_tmp(folder)
            work.journal = Journal(output, found.header)
            work.pool = Pool(work.workers)
            try:
                if before is not None:
                    before()
                counts = module.run(config, work)
            finally:
                work.pool.close(kill=True)  # all phases are over, or failed
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


SIDE_FOLDERS = ("dropped", "values", "cut", "overlaps", "models", "index", "hosts", "warc", "checkpoints", "tensorboard", "samples", "splits", "tokenizer", "state")
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
    for path in (output / "metrics.jsonl", output / "curves.svg", *output.glob("bad-batch-*.json")):
        path.unlink(missing_ok=True)
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
        kind=work.kind or work.stage.writes,
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
