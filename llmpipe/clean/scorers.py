"""Make the models that clean judges with, before any document is judged: train, measure, find the cutoffs.

    filters = prepare(config, work)         # called by the stage; [] where the config asks for no model

One unit of work, journalled like any other, so a kill does not lose it. Its models lie in `models/` of the output and what was
measured stands in the manifest's info. Later generations use the same models and cutoffs: a document's verdict never
depends on when it came.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmpipe.clean import perplexity, quality
from llmpipe.clean.perplexity import PerplexityFilter
from llmpipe.clean.quality import QualityFilter
from llmpipe.data.docs import DocUnit
from llmpipe.data.files import dump_json
from llmpipe.errors import InputError
from llmpipe.work import Counts, UnitOutput, Work

if TYPE_CHECKING:
    from llmpipe.clean.stage import Config

SAMPLE = 4_000
"""Documents that the cutoffs are found on: a share is right to 0.8 points."""
MIN_DOCUMENTS = 50
"""Languages with fewer documents in the sample share one cutoff."""


@dataclass(frozen=True, slots=True)
class ModelsUnit:
    """All models of a config, and the documents that the cutoffs are found on."""

    docs: tuple[DocUnit, ...]
    name: str = "models"


def prepare(config: Config, work: Work) -> list[Any]:
    """Return the filters of the models, trained now or in an earlier generation."""
    if not _wanted(config):
        return []
    made = (work.previous.info if work.previous else {}).get("models")
    if made is None:
        [result] = work.map(make_models, [ModelsUnit(tuple(work.doc_units()))], phase="models", shared=config)
        work.info["models"] = made = result.value
        for name, report in made.items():
            work.log.info("clean: %s: %s", name, json.dumps(report, ensure_ascii=False))
    else:
        for shard in work.previous.shards:
            if shard.name.startswith("models/") and not (work.output / shard.name).is_file():
                raise InputError(f"{work.output / shard.name} is missing", hint="restore it, or rebuild the output with --force")
    return _filters(config, work.output, made)


def try_models(config: Config, work: Work, scratch: Path) -> list[Any]:
    """Return the filters for a dry run: of the models that are there, or of such as are trained into a directory that goes again."""
    if not _wanted(config):
        return []
    if work.previous is not None and (made := work.previous.info.get("models")) is not None:
        return _filters(config, work.output, made)
    out = UnitOutput(scratch, 0, 0, "models")
    make_models(ModelsUnit(tuple(work.doc_units())), out, config)
    return _filters(config, scratch, out.value)


def make_models(unit: ModelsUnit, out: UnitOutput, config: Config) -> Counts:
    """Train what is to be trained; write it and what was measured; leave the cutoffs as the unit's value."""
    value: dict[str, Any] = {}
    for kind, module, learn in (("quality", quality, quality.train), ("perplexity", perplexity, perplexity.learn)):
        section = getattr(config, kind)
        if section is None:
            continue
        value[kind] = {}
        if section.model is None:
            model, report = learn(section)
            with out.path(f"models/{module.NAME}") as path:
                module.save_model(path, model, report)
            value[kind] = {**report, "sha256": out.shards[-1].sha256}
    _find_cutoffs(unit, out.root, config, value)
    for kind, report in value.items():
        with out.path(f"models/{kind}.json") as path:
            path.write_text(dump_json(report) + "\n", encoding="utf-8")
    out.value = value
    return Counts()


def _wanted(config: Config) -> bool:
    return config.quality is not None or config.perplexity is not None


def _filters(config: Config, root: Path, made: dict[str, Any]) -> list[Any]:
    """Make the filters, with the cutoffs that are known."""
    filters: list[Any] = []
    if config.quality is not None:
        cutoffs = tuple(sorted(made["quality"].get("cutoffs", {}).items()))
        filters.append(QualityFilter(model=_file(config.quality.model, root, quality.NAME), threshold=config.quality.threshold, cutoffs=cutoffs))
    if config.perplexity is not None:
        section, found = config.perplexity, made["perplexity"].get("cutoffs", {})
        make = partial(PerplexityFilter, model=_file(section.model, root, perplexity.NAME))
        if section.by_share:
            highest = "middle" if "tail" not in section.keep and "middle" in section.keep else "head" if "tail" not in section.keep else None
            lowest = "head" if "head" not in section.keep and "middle" in section.keep else "middle" if "head" not in section.keep else None
            filters.append(make(max_cutoffs=_pairs(found, highest), min_cutoffs=_pairs(found, lowest)))
        else:
            filters.append(make(max=np.inf if section.max is None else section.max, min=section.min or 0.0))
    return filters


def _pairs(found: dict[str, dict[str, float]], part: str | None) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((language, bounds[part]) for language, bounds in found.items())) if part else ()


def _file(given: Path | None, root: Path, name: str) -> str:
    return str(root / "models" / name if given is None else given)


def find_models(config: Config) -> Config:
    """Turn a directory that is named as `model` into the file in it, so that only this file counts in the recipe."""
    found: dict[str, Any] = {}
    for kind, module in (("quality", quality), ("perplexity", perplexity)):
        section = getattr(config, kind)
        if section is not None and section.model is not None and section.model.is_dir():
            file = next((p for p in (section.model / module.NAME, section.model / "models" / module.NAME) if p.is_file()), None)
            if file is None:
                raise InputError(f"{kind}.model: {section.model} holds no {module.NAME}", hint="llmpipe clean leaves its models in OUTPUT/models")
            found[kind] = replace(section, model=file)
    return replace(config, **found)


# --- cutoffs -------------------------------------------------------------------------------------------------------


def _find_cutoffs(unit: ModelsUnit, root: Path, config: Config, value: dict[str, Any]) -> None:
    """Judge a sample without the models' thresholds, and cut the scores of what all other rules keep, by language."""
    by_quality = config.quality is not None and config.quality.keep_share is not None and config.quality.keep_share < 1
    by_perplexity = config.perplexity is not None and config.perplexity.by_share
    if not by_quality and not by_perplexity:
        return
    from llmpipe.clean.judge import Recipe, judge

    filters = [
        QualityFilter(model=f.model, threshold=0.0) if isinstance(f, QualityFilter) else PerplexityFilter(model=f.model)
        for f in _filters(config, root, value)
    ]
    texts, urls = sample_documents(unit.docs, SAMPLE)
    verdict = judge(texts, Recipe.of(config, filters), urls)
    kept = np.array([r is None for r in verdict.reasons], bool)
    languages = np.array(verdict.languages)
    if by_quality:
        value["quality"]["cutoffs"] = {
            language: bounds[0] for language, bounds in cutoffs(verdict.values.get("quality"), languages, kept, (1 - config.quality.keep_share,)).items()
        }
    if by_perplexity:
        shares = (config.perplexity.head, config.perplexity.head + config.perplexity.middle)
        value["perplexity"]["cutoffs"] = {
            language: dict(zip(("head", "middle"), bounds, strict=True))
            for language, bounds in cutoffs(verdict.values.get("perplexity"), languages, kept, shares).items()
        }


def cutoffs(values: np.ndarray | None, languages: np.ndarray, kept: np.ndarray, shares: Sequence[float]) -> dict[str, list[float]]:
    """Return the quantiles of the kept documents' values for each language with enough of them, and under "" of all."""
    if values is None:
        return {}
    usable = kept & np.isfinite(values)
    out = {}
    for language, count in sorted(Counter(languages[usable].tolist()).items()):
        if count >= MIN_DOCUMENTS:
            out[language] = values[usable & (languages == language)]
    if usable.any():
        out[""] = values[usable]
    return {language: [float(f"{q:.6g}") for q in np.quantile(v.astype(float), shares)] for language, v in out.items()}


def sample_documents(units: Sequence[DocUnit], size: int) -> tuple[list[str], list[str | None]]:
    """Return texts and URLs of the documents with the smallest ids, which are hashes: the same ones however they are cut."""
    chosen: list[tuple[str, int, int]] = []
    for number, unit in enumerate(units):
        table = unit.read(["id", "op"])
        rows = ((i, number, row) for row, (i, op) in enumerate(zip(table["id"].to_pylist(), table["op"].to_pylist(), strict=True)) if op != "gone")
        chosen = heapq.nsmallest(size, [*chosen, *rows])
    texts, urls = {}, {}
    for number in sorted({n for _, n, _ in chosen}):
        rows = [(i, row) for i, n, row in chosen if n == number]
        table = units[number].read(["text", "url"]).take([row for _, row in rows])
        for (i, row), text, url in zip(rows, table["text"].to_pylist(), table["url"].to_pylist(), strict=True):
            texts[i, number, row], urls[i, number, row] = text, url
    return [texts[key] for key in chosen], [urls[key] for key in chosen]
