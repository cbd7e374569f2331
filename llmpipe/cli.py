"""Every subcommand of `llmpipe`, one thin typed function each; the only module that prints to stdout.

    llmpipe --help
    llmpipe clean --input docs --output cleaned --set languages='[en, zh]'

stdout is for results, stderr for people. `main` turns errors into `error: …`, `hint: …` and an exit code.
Everything heavy is imported inside the command that needs it, so that `--help` stays under 0.3 s.
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from llmpipe import __version__, log
from llmpipe.errors import FAILED, INTERRUPTED, OK, PIPE, USAGE, LlmpipeError, Terminated, UsageError

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=f"llmpipe {__version__}: from a list of URLs, or your own files, to an evaluated language model.\n\nEach command reads one directory and writes another; `llmpipe run` chains them.")
config_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Show, check and write configs.")

# --- the flags, a closed list --------------------------------------------------------------------------------------

Inputs = Annotated[list[Path], typer.Option("--input", metavar="PATH", help="Directory or file to read; repeatable.")]
OptionalInputs = Annotated[list[Path] | None, typer.Option("--input", metavar="PATH", help="Directory or file to read; repeatable.")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Directory to write.")]
Model = Annotated[Path, typer.Option("--model", metavar="DIR", help="Directory of the model.")]
Tokenizer = Annotated[Path, typer.Option("--tokenizer", metavar="DIR", help="Directory of the tokenizer.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML with the settings of this stage.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as near.threshold=0.8; repeatable.")]
Workers = Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Processes; 0 is one per core. Never changes a result.")]
Executor = Annotated[Literal["processes"], typer.Option("--executor", help="Where units of work run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Make it anew even if it is there or stale.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True, slots=True)
class Talk:
    """How to talk; every command has these."""

    json: Json = False
    verbose: Verbose = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, slots=True)
class Common(Talk):
    """What every stage has beside its inputs and output."""

    config: ConfigFile = None
    set: Sets = None
    workers: Workers = 0
    executor: Executor = "processes"
    dry_run: DryRun = False
    force: Force = False


def command(name: str, *, to: typer.Typer = app) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command, with the fields of its last parameter (`Talk` or `Common`) as flags of its own."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        *own, last = inspect.signature(function).parameters.values()
        bundle = hints[last.name]
        bundle_hints = get_type_hints(bundle, include_extras=True)

        @wraps(function)
        def call(**kwargs: Any) -> None:
            talk = bundle(**{f.name: kwargs.pop(f.name) for f in fields(bundle)})
            _debug[0] = talk.debug
            log.setup(-1 if talk.quiet else 1 if talk.verbose else 0)
            function(**kwargs, **{last.name: talk})

        shown = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in own]
        shown += [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=bundle_hints[f.name]) for f in fields(bundle)]
        call.__signature__ = inspect.Signature(shown)
        call.__annotations__ = {p.name: p.annotation for p in shown}
        del call.__wrapped__
        to.command(name)(call)
        return function

    return register


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _print(__version__)
        raise typer.Exit


# --- the stages ----------------------------------------------------------------------------------------------------


@command("crawl")
def crawl(urls: Annotated[list[str] | None, typer.Argument(metavar="[URL]...", help="Where to start.")] = None, *, output: Output, common: Common) -> None:
    """Collect web sites politely into documents."""
    _stage("crawl", common, output=output, seeds=tuple(urls or ()))


@command("ingest")
def ingest(paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders, and URLs (https, s3, hf and others).")], *, output: Output, common: Common) -> None:
    """Read files and folders into documents."""
    from llmpipe.data.remote import location

    _stage("ingest", common, inputs=tuple(map(location, paths)), output=output)


@command("clean")
def clean(*, input: Inputs, output: Output, common: Common) -> None:
    """Repair text, drop what is not worth training on, redact personal data."""
    _stage("clean", common, inputs=tuple(input), output=output)


@command("dedup")
def dedup(*, input: Inputs, output: Output, common: Common) -> None:
    """Drop exact and near duplicates."""
    _stage("dedup", common, inputs=tuple(input), output=output)


@command("augment")
def augment(*, input: Inputs, output: Output, common: Common) -> None:
    """Add changed copies to training data, marked and kept out of evaluation."""
    _stage("augment", common, inputs=tuple(input), output=output)


@command("tokenizer")
def tokenizer(*, input: Inputs, output: Output, common: Common) -> None:
    """Train a tokenizer."""
    _stage("tokenizer", common, inputs=tuple(input), output=output)


@command("tokenize")
def tokenize(*, input: Inputs, tokenizer: Tokenizer, output: Output, common: Common) -> None:
    """Turn documents into token shards."""
    _stage("tokenize", common, inputs=tuple(input), tokenizer=tokenizer, output=output)


@command("pretrain")
def pretrain(*, input: Inputs, output: Output, common: Common) -> None:
    """Train a language model from scratch; the same command resumes."""
    _stage("pretrain", common, inputs=tuple(input), output=output)


@command("finetune")
def finetune(*, model: Model, input: Inputs, output: Output, common: Common) -> None:
    """Train a model for a task on labelled rows."""
    _stage("finetune", common, model=model, inputs=tuple(input), output=output)


@command("eval")
def evaluate(*, model: Model, input: OptionalInputs = None, output: Output, common: Common) -> None:
    """Score a model: bits per byte, perplexity, accuracy, F1, each with a 95 % interval."""
    outcome = _stage("eval", common, model=model, inputs=tuple(input or ()), output=output)
    if outcome.manifest is not None and not common.json and not common.dry_run:
        from llmpipe.data.files import read_json
        from llmpipe.report import results_table

        _print(results_table(read_json(output / "results.json")["results"]))


@command("generate")
def generate(
    *,
    model: Model,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text to continue; - reads stdin.")] = None,
    input: OptionalInputs = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="DIR", help="Directory for a Parquet of continuations; without it they go to stdout.")] = None,
    common: Common,
) -> None:
    """Continue a prompt: the continuation alone on stdout, or Parquet for a file of prompts."""
    if output is not None:
        _stage("generate", common, model=model, inputs=tuple(input or ()), output=output, flags={"prompts": [prompt] if prompt else None})
        return
    if prompt is None:
        raise UsageError("generate needs --prompt TEXT", hint="or --input FILE with --output DIR for many prompts")
    from llmpipe.evaluate.generate import generate_texts

    settings = _load_config("generate", common)
    texts = generate_texts(model, sys.stdin.read() if prompt == "-" else prompt, settings)
    if common.json:
        _print_json({"prompt": prompt, "continuations": texts})
    else:
        _print("\n---\n".join(texts))


@command("export")
def export(*, model: Model, output: Output, common: Common) -> None:
    """Write a model in another format."""
    _stage("export", common, model=model, output=output)


def _stage(name: str, common: Common, *, output: Path, inputs: tuple[Any, ...] = (), flags: dict[str, Any] | None = None, **roles: Any) -> Any:
    from llmpipe.stage import STAGES, Options, Request, run_stage

    settings = _load_config(name, common, flags)
    options = Options(workers=common.workers, executor=common.executor, force=common.force, dry_run=common.dry_run)
    outcome = run_stage(STAGES[name], settings, Request(output=output, inputs=inputs, **roles), options)
    if outcome.state == "followed":  # one of torchrun's processes beyond the first, which tells
        return outcome
    if outcome.plan is not None:
        if common.json:
            _print_json(outcome.plan)
        else:
            from llmpipe.config import to_yaml

            describe = getattr(STAGES[name].load(), "describe", None)  # a table instead of a long list
            text = describe(outcome.plan) if describe else ""
            _print(to_yaml({k: v for k, v in outcome.plan.items() if not (text and k == "sample")}) + ("\n" + text if text else ""))
        return outcome
    if common.json:
        manifest = outcome.manifest
        assert manifest is not None
        _print_json({"stage": name, "state": outcome.state, "output": str(output), "seconds": round(outcome.seconds, 3), "counts": manifest.counts(), "run": _counts(outcome), "info": manifest.info})
    elif outcome.state == "fresh":
        log.log.info("%s: %s is fresh, nothing to do", name, output)
    else:
        log.log.info("%s", _summary(outcome))
    return outcome


def _load_config(name: str, common: Common, flags: dict[str, Any] | None = None) -> Any:
    from llmpipe.config import load
    from llmpipe.stage import STAGES

    return load(STAGES[name].load().Config, stage=name, file=common.config, sets=common.set or (), flags=flags)


def _counts(outcome: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(outcome.counts)


def _summary(outcome: Any) -> str:
    counts = outcome.counts
    line = f"{outcome.stage}: {counts.read:,} read, {counts.kept:,} kept"
    if counts.dropped:
        top = sorted(counts.dropped.items(), key=lambda kv: -kv[1])
        line += f", {sum(counts.dropped.values()):,} dropped (" + ", ".join(f"{k} {v:,}" for k, v in top[:6]) + ("…" if len(top) > 6 else "") + ")"
    return f"{line} -> {outcome.output}"


# --- around the stages ---------------------------------------------------------------------------------------------


@command("run")
def run(
    pipeline: Annotated[Path, typer.Argument(metavar="PIPELINE.yaml", help="A list of steps.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", help="Run directory; default runs/<name of the YAML>.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", metavar="STEP.KEY=VALUE", help="One setting of one step; repeatable.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STEP", help="Start with this step.")] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STEP", help="End with this step.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="STEP", help="Run only this step; repeatable.")] = None,
    workers: Workers = 0,
    executor: Executor = "processes",
    dry_run: DryRun = False,
    force: Force = False,
    talk: Talk,
) -> None:
    """Run a pipeline from top to bottom; what is done already is skipped."""
    from llmpipe.pipeline import load_pipeline, plan_pipeline, run_pipeline, select
    from llmpipe.report import write_report
    from llmpipe.stage import Options

    loaded = load_pipeline(pipeline, run_dir=output, sets=set or ())
    steps = select(loaded, first=first, last=last, only=only or ())
    if dry_run:
        rows = plan_pipeline(loaded, steps)
        _print_json({"run_dir": str(loaded.run_dir), "steps": rows}) if talk.json else _print(_table([(r["step"], r["state"], "; ".join(r["why"])) for r in rows], ("step", "state", "why")))
        return
    outcomes = run_pipeline(loaded, steps, Options(workers=workers, executor=executor, force=force))
    report = write_report(loaded)
    if talk.json:
        _print_json({"run_dir": str(loaded.run_dir), "report": str(loaded.run_dir / "report.md"), "steps": [{"step": s.name, "state": o.state, "seconds": round(o.seconds, 3), "counts": _counts(o)} for s, o in zip(steps, outcomes, strict=True)]})
    else:
        _print(report)


@command("status")
def status(path: Annotated[Path, typer.Argument(metavar="PIPELINE.yaml|DIR", help="A pipeline (wanted against ran), a run directory, or one output.")], *, talk: Talk) -> None:
    """Say what is there, what is fresh, and what a run would do."""
    from llmpipe.inspection import status_of

    rows = status_of(path)
    _print_json({"path": str(path), "steps": rows}) if talk.json else _print(_table([(r["step"], r["state"], r["what"]) for r in rows], ("step", "state", "what")))


@command("inspect")
def inspect_(path: Annotated[Path, typer.Argument(metavar="DIR", help="Any output of llmpipe.")], *, talk: Talk) -> None:
    """Describe an output: recipe, counts, shards, a sample."""
    from llmpipe.config import to_yaml
    from llmpipe.inspection import describe_output

    described = describe_output(path)
    _print_json(described) if talk.json else _print(to_yaml(described))


@command("why")
def why(
    document: Annotated[str, typer.Argument(metavar="ID|URL", help="A document's id or URL.")],
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory, or one output.")],
    *,
    talk: Talk,
) -> None:
    """Say what each stage did with a document, and which rule dropped it."""
    from llmpipe.inspection import trace_document

    events = trace_document(document, run_dir)
    _print_json({"document": document, "events": events}) if talk.json else _print("\n".join(f"{e['step']}: {e['what']}" for e in events))


@command("verify")
def verify(paths: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Outputs or run directories.")], *, talk: Talk) -> None:
    """Compare every file with its digest in the manifest."""
    from llmpipe.errors import InputError
    from llmpipe.inspection import verify_outputs

    checked, faults = verify_outputs(paths)
    if talk.json:
        _print_json({"checked": checked, "faults": faults})
    if faults:
        raise InputError("\n".join(faults), hint="restore the files, or rebuild the output with --force")
    if not talk.json:
        _print(f"{checked:,} files match their digests")


@command("compare")
def compare(a: Annotated[Path, typer.Argument(metavar="A")], b: Annotated[Path, typer.Argument(metavar="B")], *, talk: Talk) -> None:
    """Compare two eval outputs, paired by example."""
    from llmpipe.evaluate.compare import compare_reports

    compared = compare_reports(a, b)
    if talk.json:
        _print_json(compared)
    else:
        from llmpipe.report import compare_table

        _print(compare_table(compared))


@command("list")
def list_(what: Annotated[Literal["stages", "filters", "presets", "models", "objectives", "tasks"], typer.Argument(help="Which table.")], *, talk: Talk) -> None:
    """List what a config can name, each with its first docstring line."""
    from llmpipe.inspection import known

    rows = known(what)
    _print_json({what: dict(rows)}) if talk.json else _print(_table(rows, (what, "")))


@command("doctor")
def doctor(*, talk: Talk) -> None:
    """Check this machine: Python, libraries, cores, memory, disk, bf16, GPU."""
    from llmpipe.inspection import examine_machine

    facts = examine_machine()
    _print_json(facts) if talk.json else _print(_table([(k, str(v)) for k, v in facts.items()], ("what", "found")))


@command("show", to=config_app)
def config_show(stage: Annotated[str, typer.Argument(metavar="STAGE")], *, config: ConfigFile = None, set: Sets = None, talk: Talk) -> None:
    """Print the resolved config: defaults, YAML, environment and --set together."""
    from llmpipe.config import as_dict, load, to_yaml

    resolved = load(_config_class(stage), stage=stage, file=config, sets=set or ())
    _print_json(as_dict(resolved)) if talk.json else _print(to_yaml(resolved))


@command("init", to=config_app)
def config_init(stage: Annotated[str, typer.Argument(metavar="STAGE")], *, talk: Talk) -> None:
    """Print a YAML with every key of a stage, its default and what it means."""
    from llmpipe.config import as_dict, template

    cls = _config_class(stage)
    _print_json(as_dict(cls())) if talk.json else _print(f"# llmpipe {stage} --config THIS.yaml\n" + template(cls))


@command("validate", to=config_app)
def config_validate(file: Annotated[Path, typer.Argument(metavar="FILE.yaml")], *, stage: Annotated[str | None, typer.Option("--stage", help="The stage it is for; without it, a pipeline.")] = None, talk: Talk) -> None:
    """Check a stage's config or a pipeline, and list all faults at once."""
    from llmpipe.config import load
    from llmpipe.pipeline import load_pipeline

    if stage is None:
        load_pipeline(file)
    else:
        load(_config_class(stage), stage=stage, file=file)
    _print_json({"file": str(file), "valid": True}) if talk.json else _print(f"{file} is valid")


app.add_typer(config_app, name="config")


def _config_class(stage: str) -> type:
    from llmpipe.config import nearest
    from llmpipe.stage import STAGES

    if stage not in STAGES:
        raise UsageError(f"{stage!r} is not a stage{nearest(stage, STAGES)}")
    return STAGES[stage].load().Config


# --- printing and leaving ------------------------------------------------------------------------------------------

_debug = [False]


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    import json

    _print(json.dumps(value, ensure_ascii=False, default=str))


def _table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Align columns for a terminal, counting a Chinese character as two cells."""
    from rich.cells import cell_len

    lines = [list(header), *[list(map(str, r)) for r in rows]]
    widths = [max(cell_len(line[c]) for line in lines) for c in range(len(header))]
    return "\n".join("  ".join(cell + " " * (w - cell_len(cell)) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (0 ok, 1 failed, 2 usage, 3 input, 75 locked, 130, 141, 143)."""
    # Before torch loads its threads: waiting ones sleep. Where another process wants the core, spinning made training 3 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    click_error = typer.BadParameter.__mro__[2]  # ClickException; typer carries its own click and exports no name for it
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer has taken the KeyboardInterrupt already
            raise KeyboardInterrupt
        return code if isinstance(code, int) else OK
    except LlmpipeError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except (BrokenPipeError, SystemExit):  # typer turns a closed pipe into SystemExit, and nothing else
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return PIPE
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped by Ctrl-C", "what was finished is kept; the same command goes on", INTERRUPTED)
    except typer.Exit as error:
        return error.exit_code
    except click_error as error:
        return _fail(error.format_message(), _help_hint(error), USAGE) if error.format_message() else USAGE
    except MemoryError:
        return _fail("out of memory", "try fewer --workers or a smaller batch", FAILED)
    except Exception as error:
        from llmpipe.errors import describe

        if known := describe(error):
            return _fail(known.message, known.hint, known.exit_code)
        # anything else is a defect of ours: say so in one line, and keep the traceback for --debug
        return _fail(f"{type(error).__name__}: {error}", "this is a defect of llmpipe; --debug shows the traceback", FAILED)


def _fail(message: str, hint: str | None, code: int) -> int:
    if _debug[0]:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return code


def _help_hint(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "llmpipe --help"


def _terminate(signum: int, frame: Any) -> None:
    raise Terminated("stopped by SIGTERM", hint="what was finished is kept; the same command goes on")
