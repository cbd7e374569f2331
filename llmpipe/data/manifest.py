"""`manifest.json`: the only truth about an output. What it does not list does not exist.

    manifest = read_manifest(directory, kind="docs")
    for shard in manifest.doc_shards(): ...

Replaced atomically at the end of a generation. Everything in it but `made` (time, host, commit) is a function of
recipe and input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmpipe.data.files import child, digest_of, digest_path, read_json, sha256_file, write_json
from llmpipe.errors import InputError

SCHEMA_VERSION = 1
NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of an output. `name` is relative to the output; `rows` counts rows, or tokens of a token shard."""

    name: str
    rows: int
    bytes: int
    sha256: str
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumed:
    """One input that went into an output: a shard of a directory, a whole model, a file."""

    input: str
    """The number or role of the input: `0`, `1`, … or `tokenizer`, `model`, `valid`."""
    name: str
    sha256: str
    generation: int = 0
    """The generation of the output that consumed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    number: int
    counts: dict[str, Any]
    """The stage's `Counts` as a dict."""
    made: dict[str, Any]
    """Start, seconds, host, llmpipe version, git commit: all that is not a function of recipe and input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    stage: str
    kind: str
    recipe: dict[str, Any]
    fingerprint: str
    consumed: list[Consumed] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    """What else the stage has to say of its output: tokens, parameters, scores."""
    schema: int = SCHEMA_VERSION

    def doc_shards(self) -> list[Shard]:
        """The documents: Parquet files at the root (side tables stand in folders)."""
        return [s for s in self.shards if "/" not in s.name and s.name.endswith(".parquet")]

    def counts(self) -> dict[str, Any]:
        """Sum the counts of all generations."""
        total: dict[str, Any] = {}
        for generation in self.generations:
            _add(total, generation.counts)
        return total


def _add(total: dict[str, Any], counts: dict[str, Any]) -> None:
    for key, value in counts.items():
        if isinstance(value, dict):
            _add(total.setdefault(key, {}), value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            total[key] = total.get(key, 0) + value
        else:
            total[key] = value


def write_manifest(directory: Path, manifest: Manifest) -> None:
    write_json(directory / NAME, asdict(manifest))


def find_manifest(directory: Path) -> Manifest | None:
    """Read a manifest if there is one; a broken one is an error, never None."""
    path = directory / NAME
    if not path.is_file():
        return None
    raw = read_json(path)
    try:
        if raw["schema"] != SCHEMA_VERSION:
            raise InputError(f"{path}: schema {raw['schema']}, this llmpipe reads {SCHEMA_VERSION}", hint="rebuild it with the same command and --force")
        shards = [Shard(**s) for s in raw["shards"]]
        for shard in shards:
            child(directory, shard.name)
        return Manifest(
            **{k: raw[k] for k in ("stage", "kind", "recipe", "fingerprint", "info")},
            consumed=[Consumed(**c) for c in raw["consumed"]],
            generations=[Generation(**g) for g in raw["generations"]],
            shards=shards,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest of llmpipe ({error!r})", hint="was it edited by hand? rebuild it with --force") from None


def read_manifest(directory: Path, *, kind: str) -> Manifest:
    """Read the manifest of an input; raise `InputError` when there is none or it describes another kind."""
    if not directory.exists():
        raise InputError(f"{directory}: no such directory", hint=_HINTS.get(kind))
    manifest = find_manifest(directory)
    if manifest is None:
        raise InputError(f"{directory}: no {NAME}, so this is not a finished {kind} directory of llmpipe", hint=_HINTS.get(kind))
    if manifest.kind != kind:
        raise InputError(f"{directory} holds {manifest.kind} (made by {manifest.stage}), but {kind} is needed here", hint=_HINTS.get(kind))
    return manifest


_HINTS = {
    "docs": "llmpipe ingest PATH --output DIR makes documents of files, llmpipe crawl URL --output DIR of web sites; if a run was cut short, repeat its command",
    "tokenizer": "llmpipe tokenizer --input DOCS --output DIR trains one",
    "tokens": "llmpipe tokenize --input DOCS --tokenizer DIR --output DIR makes them",
    "model": "llmpipe pretrain --input TOKENS --output DIR trains one",
}


def digest_input(path: Path) -> str:
    """Hash what a config's path holds: the files that a manifest lists (when and where they were made doesn't count), or all files there."""
    manifest = find_manifest(path) if path.is_dir() else None
    return digest_path(path) if manifest is None else digest_of(sorted([s.name, s.sha256] for s in manifest.shards))


def verify_manifest(directory: Path, manifest: Manifest) -> list[str]:
    """Compare every listed file with its size and digest; return one line per fault."""
    faults = []
    for shard in manifest.shards:
        path = directory / shard.name
        if not path.is_file():
            faults.append(f"{path}: missing")
        elif path.stat().st_size != shard.bytes:
            faults.append(f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}")
        elif sha256_file(path) != shard.sha256:
            faults.append(f"{path}: content differs from its sha256 in the manifest")
    return faults
