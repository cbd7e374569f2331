"""Repair text, keep what is worth training on, redact personal data.

    llmpipe clean --input docs --output cleaned --set 'languages=[en, zh]' --set presets='[fineweb, fineweb2-zh]'

Reads a directory of documents. Writes documents, `dropped/` (each with the rule, its value and threshold) and `values/`
(what every rule measured on every document, kept or not).
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llmpipe.clean.boilerplate import Boilerplate
from llmpipe.clean.perplexity import Perplexity
from llmpipe.clean.quality import Quality
from llmpipe.clean.toxicity import Toxicity
from llmpipe.clean.urls import UrlLists
from llmpipe.clean.words import BadWords
from llmpipe.config import as_dict, cosmetic
from llmpipe.data.docs import SCHEMA, DocUnit, doc_units, dropped_table, write_parquet
from llmpipe.data.files import dump_json
from llmpipe.data.ids import content_hash
from llmpipe.work import Counts, UnitOutput, Work

MAX_SAMPLED_UNITS = 20
PII_KINDS = ("secret", "email", "ip", "id_number", "bank_card", "phone", "account")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    presets: list[str] = field(default_factory=lambda: ["fineweb"])
    """Sets of filters with published thresholds, applied in order: gopher, c4, c4-paper, mc4, fineweb, fineweb2-zh, refinedweb, dclm.
    The variant (English, Chinese, other languages with or without spaces) follows each document's language."""
    filters: list[Any] = field(default_factory=list)
    """Single filters by name, or `{name: {threshold: value}}` to override thresholds of a preset, `{name: off}` to leave one
    out. Names: length, encoding, gopher_repetition, gopher_quality, c4, c4_paragraphs,
    fineweb_quality, lines, or package.module:Name for your own."""
    languages: list[str] = field(default_factory=list)
    """Keep only documents in these (BCP-47: en, zh, ja, …); none: keep all."""
    min_language_score: float = 0.0
    """Drop documents whose language is less certain than this (0 to 1)."""
    pii: Literal["redact", "drop", "off"] = "redact"
    """Personal data and secrets: replace by <EMAIL>, <IP>, <PHONE>, <ID_NUMBER>, <BANK_CARD>, <ACCOUNT>, <SECRET>; drop the
    document; or leave as is."""
    pii_kinds: list[Literal["secret", "email", "ip", "id_number", "bank_card", "phone", "account"]] = field(default_factory=lambda: list(PII_KINDS))
    """Which kinds count: `account` are WeChat and QQ names, `secret` keys, tokens and passwords."""
    urls: UrlLists | None = None
    """Drop documents by their URL: `block` and `allow` (files of domains, addresses, re:patterns), `builtin`, `banned_words`,
    `soft_words`, `max_soft_words`; `{}` takes the defaults, null is off."""
    bad_words: BadWords | None = None
    """Drop documents full of pornography, gambling or slurs: `files`, `builtin`, `max_share`, `max_count`; null is off."""
    toxicity: Toxicity | None = None
    """Scores of a model of your own: `scorer` (package.module:Name), `threshold`, `version`; null is off."""
    quality: Quality | None = None
    """A classifier trained on `positive` and `negative` examples, or a trained `model`; `threshold` or `keep_share`; null is off."""
    perplexity: Perplexity | None = None
    """A small n-gram model of a `reference`, or a trained `model`; `keep` (head, middle, tail) or `max`, `min`; null is off."""
    boilerplate: Boilerplate | None = None
    """Remove lines that stand on many pages of one domain (`boilerplate={}`: on 10 documents and a tenth of them). Costs a first pass
    over the input; null: off."""
    sample: int = cosmetic(500)
    """Documents that --dry-run tries the rules on; 0: none. Where the output is there and differs in thresholds alone, its values serve."""
    sweep: dict[str, list[float]] = cosmetic(default_factory=dict)
    """Thresholds that --dry-run compares: `{gopher_quality.min_words: [30, 50, 80]}`."""

    def __post_init__(self) -> None:
        from llmpipe.clean.judge import Recipe

        if not 0 <= self.min_language_score <= 1:
            raise ValueError(f"min_language_score: {self.min_language_score} is not between 0 and 1")
        Recipe.of(self)


def resolve(config: Config) -> Config:
    from llmpipe.clean.scorers import find_models

    return find_models(config)


def run(config: Config, work: Work) -> Counts:
    """Clean all pending row groups, each on its own; with `boilerplate`, after a pass that counts lines."""
    from llmpipe.clean.scorers import prepare

    units = work.doc_units()
    models = prepare(config, work)
    frozen = _freeze(config.boilerplate, units, work) if config.boilerplate else None
    results = work.map(clean_unit, units, shared=(config, models, frozen))
    return sum((r.counts for r in results), Counts())


def _freeze(settings: Boilerplate, units: list[DocUnit], work: Work) -> tuple[str, str]:
    """Count lines, and write down what is boilerplate for this generation; return that file's path and digest."""
    from llmpipe.clean.boilerplate import merge

    work.map(count_unit, units, phase="lines", shared=settings)
    names = {s.name for s in (work.previous.shards if work.previous else [])} | set(work.files)
    runs = [work.output / name for name in sorted(names) if name.startswith("index/lines-")]
    path = work.output / "index" / f"boilerplate-{work.generation:05d}-000000.parquet"
    table = merge(runs, settings)
    write_parquet(path, table)
    work.info["boilerplate"] = {"lines": table.num_rows, "generation": work.generation}
    return str(path), work.add_file(path, rows=table.num_rows).sha256


def count_unit(unit: DocUnit, out: UnitOutput, settings: Boilerplate) -> Counts:
    """Count the lines of one row group, as they are after normalisation, into a sorted run in `index/`."""
    from llmpipe.clean.boilerplate import count_lines
    from llmpipe.clean.normalize import normalize

    table = unit.read(["text", "url", "source", "op"]).filter(pc.field("op") == "new")
    texts = [normalize(t) for t in table.column("text").to_pylist()]
    out.table("index", count_lines(texts, _domains(table), max_chars=settings.max_chars))
    return Counts()


def _domains(table: pa.Table) -> list[str]:
    from llmpipe.clean.boilerplate import domain_of

    return [domain_of(url, source) for url, source in zip(table.column("url").to_pylist(), table.column("source").to_pylist(), strict=True)]


@lru_cache(maxsize=1)
def _frozen(path: str, sha256: str, max_chars: int) -> Any:
    """Load the boilerplate once a process."""
    from llmpipe.clean.boilerplate import Frozen

    return Frozen(pq.read_table(path, columns=["key"]).column("key").to_numpy(), max_chars=max_chars)


def clean_unit(unit: DocUnit, out: UnitOutput, shared: tuple[Config, list[Any], tuple[str, str] | None]) -> Counts:
    """Clean one row group: documents at the root, the rest in `dropped/`, measurements in `values/`."""
    from llmpipe.clean.judge import judge

    config, models, frozen = shared
    table = unit.read(SCHEMA.names)
    ops = table.column("op").to_pylist()
    live = [i for i, op in enumerate(ops) if op != "gone"]
    rows = table.take(pa.array(live, pa.int64()))
    boilerplate = _frozen(*frozen, config.boilerplate.max_chars) if frozen and config.boilerplate else None
    domains = _domains(rows) if boilerplate else ()
    verdict = judge(rows.column("text").to_pylist(), _recipe(config, models), rows.column("url").to_pylist(), domains=domains, boilerplate=boilerplate)
    place = {row: k for k, row in enumerate(live)}

    kept_rows, texts, kept_ops = [], [], []
    for row, op in enumerate(ops):
        k = place.get(row)
        if k is not None and verdict.reasons[k] is None:
            kept_rows.append(row), texts.append(verdict.texts[k]), kept_ops.append(op)
        elif op != "new":  # an earlier version may have been kept
            kept_rows.append(row), texts.append(""), kept_ops.append("gone")
    out.docs(_docs(table, kept_rows, texts, kept_ops, place, verdict))
    dropped = [k for k, reason in enumerate(verdict.reasons) if reason is not None]
    ids, urls = table.column("id").to_pylist(), table.column("url").to_pylist()
    originals = table.column("text")
    out.dropped(
        dropped_table(
            {
                "id": ids[live[k]],
                "url": urls[live[k]],
                "stage": "clean",
                "rule": verdict.reasons[k].rule,
                "value": verdict.reasons[k].value,
                "threshold": verdict.reasons[k].threshold,
                "partner_id": None,
                "snippet": originals[live[k]].as_py()[:200],
            }
            for k in dropped
        )
    )
    out.table("values", _values([ids[i] for i in live], verdict))
    by_rule = Counter(verdict.reasons[k].rule for k in dropped)
    return Counts(read=len(live), kept=len(live) - len(dropped), dropped=dict(sorted(by_rule.items())), extra=dict(sorted((k, n) for k, n in verdict.counts.items() if n)))


def _docs(table: pa.Table, rows: list[int], texts: list[str], ops: list[str], place: dict[int, int], verdict: Any) -> pa.Table:
    """Take `rows` of the input with their new text, language, hash and op."""
    docs = table.take(pa.array(rows, pa.int64())).select(SCHEMA.names).cast(SCHEMA)
    numbers = [place.get(row) for row in rows]
    gone = [op == "gone" for op in ops]
    new = {
        "text": texts,
        "language": [None if g else verdict.languages[k] for k, g in zip(numbers, gone, strict=True)],
        "language_score": [None if g else float(verdict.scores[k]) for k, g in zip(numbers, gone, strict=True)],
        "content_hash": [content_hash(t) for t in texts],
        "op": ops,
    }
    for name, column in new.items():
        index = SCHEMA.get_field_index(name)
        docs = docs.set_column(index, SCHEMA.field(index), pa.array(column, SCHEMA.field(index).type))
    return docs


def _values(ids: list[str], verdict: Any) -> pa.Table:
    """One row a document: its language, profile, first failed rule, and a float column for each statistic."""
    columns = {
        "id": pa.array(ids, pa.string()),
        "language": pa.array(verdict.languages, pa.string()),
        "language_score": pa.array(verdict.scores, pa.float32()),
        "profile": pa.array(verdict.profiles, pa.string()),
        "rule": pa.array([r.rule if r else None for r in verdict.reasons], pa.string()),
    }
    for name in sorted(verdict.values):
        values = verdict.values[name]
        columns[name] = pa.array(values, pa.float32(), mask=np.isnan(values))
    return pa.table(columns)


_recipes: dict[str, Any] = {}  # by config: one a process, for names are resolved and models loaded once


def _recipe(config: Config, models: list[Any]) -> Any:
    from llmpipe.clean.judge import Recipe

    key = dump_json([as_dict(config), repr(models)])
    if key not in _recipes:
        _recipes[key] = Recipe.of(config, models)
    return _recipes[key]


def plan(config: Config, work: Work) -> dict[str, Any]:
    """Say how many documents each rule would drop first, how many at all, and which: by the values of the output that is there, or on a sample."""
    from llmpipe.clean import sweep
    from llmpipe.clean.judge import Recipe
    from llmpipe.clean.scorers import try_models

    every = [unit for given in work.inputs if given.role.isdigit() for unit in doc_units(given.path, given.shards)]
    previous = work.previous
    trial = sweep.reuse_values(config, previous.recipe["config"], work.output, [s.name for s in previous.shards], Config) if previous and previous.stage == "clean" else None
    if trial is None:
        units = work.doc_units() or every
        if not config.sample or not units:
            return {}
        with tempfile.TemporaryDirectory() as scratch:  # a dry run writes nothing that stays, not even the models that it judges with
            trial = sweep.try_rules(Recipe.of(config, try_models(config, work, Path(scratch))), *_sample(config, units))
    found = sweep.report(trial, config.sweep)
    sweep.add_examples(found, every)
    return {"sample": found}


def _sample(config: Config, units: list[DocUnit]) -> tuple[list[str], list[str], list[str | None]]:
    """Draw documents from row groups spread over the input: ids, texts, URLs."""
    chosen = units[:: max(len(units) // MAX_SAMPLED_UNITS, 1)]
    share = -(-config.sample // len(chosen))
    ids, texts, urls = [], [], []
    for unit in chosen:
        table = unit.read(["id", "text", "url"])
        rows = pa.array(sorted(random.Random(unit.name).sample(range(table.num_rows), min(share, table.num_rows))), pa.int64())
        for column, values in (("id", ids), ("text", texts), ("url", urls)):
            values += table.column(column).take(rows).to_pylist()
    return ids, texts, urls


def describe(plan: dict[str, Any]) -> str:
    """Lay out what a dry run found, for people; empty where it found nothing."""
    from llmpipe.clean.sweep import table

    return table(plan["sample"]) if "sample" in plan else ""
