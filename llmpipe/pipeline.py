"""Read a pipeline.yaml, plan it, and run its steps from top to bottom.

    llmpipe run configs/pipelines/quickstart.yaml          # leaves runs/quickstart/<step>/
    llmpipe run configs/pipelines/quickstart.yaml --dry-run

A pipeline is a list of steps, each a stage's name with its config. A step's input is the nearest earlier step that
makes what it reads; `input`, `tokenizer` and `model` name another step, or a path relative to the YAML. `name` tells
two steps of one stage apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmpipe import config as configs
from llmpipe.data.files import atomic_write, directory_lock
from llmpipe.data.remote import Location, Remote, location
from llmpipe.errors import InputError, LlmpipeError, UsageError
from llmpipe.log import log
from llmpipe.stage import STAGES, Options, Outcome, Request, Stage, run_stage
from llmpipe.survey import find_inputs, survey

RESERVED = ("name", "input", "tokenizer", "model")
"""Keys of a step that say what it reads; all others are the stage's config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    name: str
    stage: Stage
    config: Any
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    name: str
    source: Path
    run_dir: Path
    steps: list[Step]


def load_pipeline(path: Path, *, run_dir: Path | None = None, sets: Sequence[str] = ()) -> Pipeline:
    """Read and check a whole pipeline before anything runs; raise one `UsageError` with all faults.

    `sets` are `STEP.KEY=VALUE`. `run_dir` defaults to `runs/<file name>` in the working directory.
    """
    raw = configs.read_yaml(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("steps"), list) or not raw["steps"]:
        raise UsageError(f"{path}: a pipeline has a list of steps", hint="see configs/pipelines/quickstart.yaml")
    if unknown := sorted(set(raw) - {"steps"}):
        raise UsageError(f"{path}: {unknown[0]}: unknown key{configs.nearest(unknown[0], ['steps'])}")
    run_dir = run_dir or Path("runs") / path.stem
    base = path.resolve().parent
    parsed, faults = _parse_steps(raw["steps"], path)
    steps: list[Step] = []
    by_step = _split_sets(sets, [name for name, *_ in parsed])
    for name, stage, mapping in parsed:
        mapping, settings_of_step = _wire(mapping, by_step.get(name, ()))
        own = {k: v for k, v in mapping.items() if k not in RESERVED or (k == "model" and isinstance(v, dict))}
        if stage.name == "crawl":
            own.setdefault("refresh", "none")  # a second run is fresh, not a new visit round, unless the pipeline says so
        try:
            cls = stage.load().Config
            settings = configs.load(cls, stage=name, mapping=own, base=base, sets=settings_of_step)
            request = _request(name, stage, mapping, steps, base, run_dir)
        except UsageError as error:
            faults.append(f"{path}: {error.message}" if not error.message.startswith(str(path)) else error.message)
            request, settings = Request(output=run_dir / name), None
        steps.append(Step(name=name, stage=stage, config=settings, request=request))
    if faults:
        raise UsageError("\n".join(faults), hint="llmpipe config init STAGE shows every key with its default")
    return Pipeline(name=path.stem, source=path, run_dir=run_dir, steps=steps)


def _parse_steps(raw: list[Any], path: Path) -> tuple[list[tuple[str, Stage, Mapping[str, Any]]], list[str]]:
    parsed: list[tuple[str, Stage, Mapping[str, Any]]] = []
    faults: list[str] = []
    for number, item in enumerate(raw, 1):
        if isinstance(item, str):
            item = {item: None}
        if not isinstance(item, dict) or len(item) != 1:
            faults.append(f"{path}: step {number}: expected one stage with its config, such as `- dedup: {{}}`")
            continue
        stage_name, mapping = next(iter(item.items()))
        if stage_name not in STAGES:
            faults.append(f"{path}: step {number}: unknown stage {str(stage_name)!r}{configs.nearest(str(stage_name), STAGES)}")
            continue
        mapping = {} if mapping in (None, "", "null") else mapping
        if not isinstance(mapping, dict):
            faults.append(f"{path}: step {number} ({stage_name}): expected keys and values")
            continue
        name = str(mapping.get("name", stage_name))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            faults.append(f"{path}: step {number}: name {name!r} may hold letters, digits, - and _ only")
        elif name in [n for n, *_ in parsed]:
            faults.append(f"{path}: step {number}: two steps are named {name}; give one a `name:`")
        else:
            parsed.append((name, STAGES[stage_name], mapping))
    return parsed, faults


def _split_sets(sets: Sequence[str], names: list[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for item in sets:
        step, dot, rest = item.partition(".")
        if not dot or step not in names:
            shown = re.split(r"[{\[:]", item)[0]  # what follows may hold a password
            raise UsageError(f"--set {shown!r}: {step.partition('=')[0]!r} is not a step{configs.nearest(step, names)}", hint="in a pipeline it is --set STEP.KEY=VALUE")
        out.setdefault(step, []).append(rest)
    return out


def _wire(mapping: Mapping[str, Any], sets: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take what --set says of a step's input, tokenizer and model into its mapping; paths are relative to the working directory."""
    out, rest = dict(mapping), []
    for item in sets:
        key, _, text = item.partition("=")
        if key in ("input", "tokenizer", "model"):
            value = configs.parse(text, f"--set {key}")
            out[key] = [_from_here(v) for v in value] if isinstance(value, list) else _from_here(value)
        else:
            rest.append(item)
    return out, rest


def _from_here(given: Any) -> str:
    """An existing path becomes absolute; anything else may be the name of a step."""
    path = Path(str(given)).expanduser()
    return str(path.resolve()) if path.exists() else str(given)


def _request(name: str, stage: Stage, mapping: Mapping[str, Any], earlier: list[Step], base: Path, run_dir: Path) -> Request:
    """Find what a step reads: what it names, else the nearest earlier step that makes it."""

    def place(given: Any) -> Location:
        for step in earlier:
            if step.name == str(given):
                return step.request.output
        path = location(str(given)) if stage.reads == ("files",) else Path(str(given)).expanduser()
        return path if isinstance(path, Remote) or path.is_absolute() else base / path

    def nearest(kinds: Sequence[str]) -> Step | None:
        return next((s for s in reversed(earlier) if s.stage.writes in kinds and s.stage.name != "export"), None)

    roles: dict[str, Path | None] = {"tokenizer": None, "model": None}
    maker: Step | None = None
    for role in stage.needs:
        given = mapping.get(role)
        if given is not None and not isinstance(given, dict):
            roles[role] = place(given)
            maker = next((s for s in earlier if s.request.output == roles[role]), None)
        else:
            maker = nearest((role,))
            if maker is None:
                raise UsageError(f"{name}: no earlier step makes a {role}", hint=f"name one with `{role}:`")
            roles[role] = maker.request.output
    given = mapping.get("input")
    inputs: tuple[Location, ...] = ()
    if given is not None:
        inputs = tuple(place(g) for g in (given if isinstance(given, list) else [given]))
    elif stage.name == "eval" and maker is not None and maker.stage.name == "finetune":
        pass  # its own held-out split is what it is scored on
    elif source := nearest(stage.reads):
        inputs = () if stage.name == "generate" else (source.request.output,)
    elif not stage.input_optional:
        raise UsageError(f"{name}: no earlier step makes {' or '.join(stage.reads)}", hint="name one with `input:`")
    return Request(output=run_dir / name, inputs=inputs, tokenizer=roles["tokenizer"], model=roles["model"])


# --- planning and running ------------------------------------------------------------------------------------------


def select(pipeline: Pipeline, *, first: str | None = None, last: str | None = None, only: Sequence[str] = ()) -> list[Step]:
    """Pick the steps that --from, --until and --only leave."""
    names = [s.name for s in pipeline.steps]
    for name in [first, last, *only]:
        if name is not None and name not in names:
            raise UsageError(f"{name!r} is not a step of {pipeline.source}{configs.nearest(name, names)}")
    start = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if start > end:
        raise UsageError(f"--from {first} comes after --until {last}")
    return [s for i, s in enumerate(pipeline.steps) if (s.name in only if only else start <= i <= end)]


def _without_secrets(pipeline: Pipeline) -> str:
    """The pipeline's text with `***` for what its secret fields hold, other than names of variables."""
    text = pipeline.source.read_text(encoding="utf-8")
    held = sorted({s for step in pipeline.steps for s in configs.secret_texts(step.config)}, key=len, reverse=True)
    for secret in held:
        text = text.replace(secret, "***")
    if held and any(secret in configs.leaves(configs.parse(text, str(pipeline.source))) for secret in held):
        raise UsageError(f"{pipeline.source}: a secret is spelled with escapes, and a copy of this file is kept in {pipeline.run_dir}", hint="name a variable of the environment in its place: $NAME")
    return text


def run_pipeline(pipeline: Pipeline, steps: Sequence[Step], options: Options, *, announce: Callable[[str], None] = log.info) -> list[Outcome]:
    """Run steps in order under a lock on the run directory; a step that is fresh costs milliseconds."""
    outcomes = []
    with directory_lock(pipeline.run_dir):
        atomic_write(pipeline.run_dir / "pipeline.yaml", _without_secrets(pipeline))
        for number, step in enumerate(steps, 1):
            announce(f"[{number}/{len(steps)}] {step.name}")
            try:
                outcome = run_stage(step.stage, step.config, step.request, replace(options, owned=True))
            except LlmpipeError as error:
                raise type(error)(f"step {step.name}: {error.message}", hint=error.hint) from error
            announce(f"[{number}/{len(steps)}] {step.name}: {'fresh, nothing to do' if outcome.state == 'fresh' else f'done in {outcome.seconds:.1f} s'}")
            outcomes.append(outcome)
    return outcomes


def plan_pipeline(pipeline: Pipeline, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Say for each step what a run would do, and why. Reads only; a step behind one that will run is `waiting`."""
    rows: list[dict[str, Any]] = []
    moving: set[Path] = set()
    for step in steps:
        request = step.request
        sources = {p for p in (*request.inputs, request.model, request.tokenizer) if p is not None}
        row: dict[str, Any] = {"step": step.name, "stage": step.stage.name, "output": str(request.output), "inputs": sorted(map(str, sources))}
        if waits := sorted(p.name for p in sources & moving):
            row.update(state="waiting", why=[f"for {', '.join(waits)}"])
        else:
            try:
                module = step.stage.load()
                config = module.resolve(step.config) if hasattr(module, "resolve") else step.config
                found = survey(step.stage, config, find_inputs(step.stage, request), request.output)
                row.update(state=found.state, why=found.why)
            except InputError as error:
                row.update(state="blocked", why=[error.message])
        if row["state"] != "fresh":
            moving.add(request.output)
        rows.append(row)
    return rows
