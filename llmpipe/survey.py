"""What is wanted against what lies on disk: find a stage's inputs, and say in which state its output is.

    found = survey(stage, config, find_inputs(stage, request), output)
    found.state, found.why           # "stale", ["config.filters.min_chars 100 -> 200"]

Reads only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmpipe.config import diff, recipe_of
from llmpipe.data.files import digest_of
from llmpipe.data.manifest import Consumed, Manifest, Shard, find_manifest, read_manifest
from llmpipe.data.remote import Location, Remote, list_remote
from llmpipe.data.seen import Seen
from llmpipe.errors import InputError, UsageError
from llmpipe.journal import read_journal
from llmpipe.work import Input, shard_of

if TYPE_CHECKING:
    from llmpipe.stage import Request, Stage


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


# --- inputs --------------------------------------------------------------------------------------------------------


def find_inputs(stage: Stage, request: Request) -> list[Input]:
    """Resolve and check every input of a request; raise `InputError` or `UsageError` naming what is missing."""
    if not request.inputs and not stage.input_optional:
        raise UsageError(f"{stage.name} needs an --input ({' or '.join(stage.reads)})", hint=f"llmpipe {stage.name} --help")
    if stage.reads == ("files",):
        now, seen = time.time(), Seen(request.output)
        return [Input(role=str(n), path=path, kind="files", manifest=None, shards=_files(path, seen), listed_at=now) for n, path in enumerate(request.inputs)]
    inputs = [_input(str(n), path, stage.reads) for n, path in enumerate(request.inputs)]
    for role in stage.needs:
        path = getattr(request, role)
        if path is None:
            raise UsageError(f"{stage.name} needs --{role} DIR", hint=f"llmpipe {stage.name} --help")
        inputs.append(_input(role, path, (role,)))  # type: ignore[arg-type]
    return inputs


def _input(role: str, path: Path, kinds: Sequence[str]) -> Input:
    """Recognise one input. Documents, tokenizers and tokens need a manifest; a model may be any Hugging Face directory, rows any file."""
    manifest = find_manifest(path) if path.is_dir() else None
    if manifest is not None and manifest.kind in kinds:
        shards = manifest.doc_shards() if manifest.kind == "docs" else [s for s in manifest.shards if "/" not in s.name]
        return Input(role=role, path=path, kind=manifest.kind, manifest=manifest, shards=shards)
    if manifest is None and "rows" in kinds and path.is_file():
        return Input(role=role, path=path, kind="rows", manifest=None, shards=[replace(shard_of(path.parent, path.name, 0), name=path.name)])
    if manifest is None and "model" in kinds and (path / "config.json").is_file():
        names = sorted(p.name for p in path.iterdir() if p.is_file() and re.fullmatch(r".*\.(safetensors|json)", p.name))
        return Input(role=role, path=path, kind="model", manifest=None, shards=[shard_of(path, n, 0) for n in names])
    if not path.exists():
        raise InputError(f"{path}: no such file or directory", hint=_how_to_make(kinds))
    wanted = next((k for k in kinds if k in ("docs", "tokens", "tokenizer", "model")), None)
    if wanted and path.is_dir():
        read_manifest(path, kind=wanted)  # raises with the right words
    raise InputError(f"{path} is not {' or '.join(kinds)}", hint=_how_to_make(kinds))


def _how_to_make(kinds: Sequence[str]) -> str | None:
    from llmpipe.stage import STAGES

    makers = [s.name for s in STAGES.values() if s.writes in kinds]
    return f"llmpipe {' or '.join(makers)} makes {' or '.join(k for k in kinds if any(STAGES[m].writes == k for m in makers))}" if makers else None


def _files(path: Location, seen: Seen) -> list[Shard]:
    """List a file, or the files below a folder (hidden ones and links that lead out of it left out), with digests."""
    if isinstance(path, Remote):
        return [Shard(name=name, rows=0, bytes=size, sha256=version) for name, size, version in list_remote(path)]
    if path.is_file():
        return [seen.shard(path, path.name)]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory", hint="llmpipe ingest takes files, folders and URLs such as s3://bucket/folder")
    root = path.resolve()
    names = []
    for found in sorted(path.rglob("*")):
        relative = found.relative_to(path)
        if not any(part.startswith(".") for part in relative.parts) and found.is_file() and found.resolve().is_relative_to(root):
            names.append(relative.as_posix())
    return [seen.shard(path / name, name) for name in names]
