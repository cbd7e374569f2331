"""Find the outputs that led to a model, and the reports on it, among the directories beside it.

    steps = lineage(Path("runs/quickstart/pretrain"))      # [crawl, clean, …, pretrain], as far as they are there

Manifests name what they consumed by digest, not by path, so a neighbour counts only if it holds those very bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmpipe.data.manifest import Manifest, find_manifest
from llmpipe.errors import InputError
from llmpipe.stage import STAGES


@dataclass(frozen=True, slots=True)
class Step:
    path: Path
    manifest: Manifest


def lineage(model: Path) -> list[Step]:
    """Return the steps that led to `model`, itself last, each before what it fed."""
    found = _neighbours(model)
    own = next((s for s in found if s.path == model.resolve()), None)
    if own is None:
        return []
    ordered: list[Step] = []

    def visit(step: Step) -> None:
        if step in ordered:
            return
        for source in found:
            if source is not step and _fed(source, step):
                visit(source)
        ordered.append(step)

    visit(own)
    return ordered


def reports(model: Path) -> list[Step]:
    """Return the evaluations of `model` that lie beside it."""
    found = _neighbours(model)
    own = next((s for s in found if s.path == model.resolve()), None)
    return [s for s in found if s.manifest.stage == "eval" and own is not None and _fed(own, s)]


def _neighbours(model: Path) -> list[Step]:
    steps = []
    for path in sorted(model.resolve().parent.iterdir()):
        try:
            manifest = find_manifest(path) if path.is_dir() else None
        except InputError:
            continue  # a broken neighbour says nothing about this model
        if manifest is not None:
            steps.append(Step(path, manifest))
    return steps


def _fed(source: Step, target: Step) -> bool:
    """Whether `target` consumed `source`: all that it read in one role lies there, and is of the kind that the role takes.

    One equal file is not enough: a tokenizer is copied into tokens and models, and would make each the source of the other.
    """
    if source.manifest.stage == "export" or target.manifest.stage not in STAGES:
        return False
    stage, kind = STAGES[target.manifest.stage], source.manifest.kind
    there = {(s.name, s.sha256) for s in source.manifest.shards}
    roles: dict[str, set[tuple[str, str]]] = {}
    for c in target.manifest.consumed:
        roles.setdefault(c.input, set()).add((c.name, c.sha256))
    return any(read <= there and kind in (stage.reads if role.isdigit() else (role,)) for role, read in roles.items())
