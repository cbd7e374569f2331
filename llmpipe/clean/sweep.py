"""Compare rules and thresholds without running the stage: on a sample, or on the values that a run left behind.

    llmpipe clean --input docs --output cleaned --dry-run --set sample=1000
    llmpipe clean --input docs --output cleaned --dry-run --set 'sweep={gopher_quality.min_words: [30, 50, 80]}'

When `cleaned` is there already and was made with the same rules but for thresholds, its `values/` answer for all of its documents
at once. Otherwise a sample of the input is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.clean.judge import PROFILES, Recipe, judge
from llmpipe.clean.rules import FAILING, filter_name
from llmpipe.data.docs import DocUnit

NUM_EXAMPLES = 5
SNIPPET = 120
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""For each rule: the thresholds that would drop these shares."""


@dataclass(slots=True)
class Trial:
    """What rules make of D documents."""

    ids: list[str]
    reasons: list[str | None]
    """The first rule that each fails."""
    failed: dict[str, np.ndarray]
    """(D,) bool by rule."""
    values: dict[str, np.ndarray]
    """(D,) by rule, NaN where it doesn't apply."""
    checks: dict[str, tuple[str, float]]
    """By rule: comparison and threshold (that of the variant which most documents meet)."""
    source: str


def try_rules(recipe: Recipe, ids: list[str], texts: list[str], urls: list[str | None]) -> Trial:
    """Judge texts."""
    verdict = judge(texts, recipe, urls)
    known = _known_rules(recipe, verdict.profiles)
    values = {rule: verdict.values[statistic] for rule, (statistic, _, _) in known.items() if statistic in verdict.values}
    reasons = [r.rule if r else None for r in verdict.reasons]
    return Trial(ids, reasons, verdict.failed, values, {rule: (failing, limit) for rule, (_, failing, limit) in known.items()}, "sample")


def _known_rules(recipe: Recipe, profiles: Sequence[str]) -> dict[str, tuple[str, str, float]]:
    """Statistic, comparison and threshold of the rules whose filters list them; of several variants that which most documents meet."""
    out = {}
    for profile in sorted(recipe.rules, key=Counter(profiles).__getitem__):
        for rule in recipe.rules[profile]:
            for name, statistic, failing in getattr(rule.filter, "CHECKS", ()):
                threshold = getattr(rule.filter, name)
                if threshold is not None and threshold is not False:
                    out[f"{filter_name(rule.filter)}.{name}"] = (statistic, failing, 0.0 if threshold is True else float(threshold))
    return out


_JUDGED_OTHERWISE = ("urls", "bad_words", "toxicity", "quality", "perplexity")
"""Settings whose rules need more than the values: addresses, words, models."""

# --- from values ----------------------------------------------------------------------------------------------------


class _Recorded:
    """Measurements as `values/` holds them, in place of Stats."""

    def __init__(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> None:
        self._columns, self._rows = columns, rows

    def get(self, statistic: str, owner: Any = None) -> np.ndarray:
        return self._columns[statistic][self._rows]


def reuse_values(config: Any, made_with: dict[str, Any], output: Path, shards: Sequence[str], make: Callable[..., Any]) -> Trial | None:
    """Apply a config's rules to the values of an output made with another config; None where they don't suffice."""
    if any(getattr(config, name) is not None or made_with.get(name) is not None for name in _JUDGED_OTHERWISE):
        return None
    names = [name for name in shards if name.startswith("values/")]
    try:
        old = Recipe.of(make(**{k: v for k, v in made_with.items() if k in ("presets", "filters", "languages", "min_language_score", "pii")}))
    except (TypeError, ValueError):  # made by another version
        return None
    new = Recipe.of(config)
    if not names or not _measured_alike(old, new) or made_with.get("boilerplate") != _as_recipe(config.boilerplate):
        return None
    table = pa.concat_tables([pq.read_table(output / name) for name in names], promote_options="default")
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names if name not in ("id", "language", "profile", "rule")}
    try:
        return _judge_recorded(new, table, columns)
    except KeyError:  # a statistic that no rule asked for then
        return None


def _as_recipe(settings: Any) -> dict[str, Any] | None:
    return None if settings is None else {f.name: getattr(settings, f.name) for f in fields(settings)}


def _measured_alike(old: Recipe, new: Recipe) -> bool:
    """Whether each filter of `new` was there in `old` with the same settings but for thresholds, and saw the same text."""
    for name in PROFILES:
        before, now = _seen(old.rules[name]), _seen(new.rules[name])
        if any(shape is None or (shape, earlier) not in before for shape, earlier in now):
            return False
    return True


def _seen(rules: Sequence[Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each filter's shape, and the filters that had rewritten the text before it."""
    out: list[tuple[Any, tuple[Any, ...]]] = []
    earlier: tuple[Any, ...] = ()
    for rule in rules:
        out.append((_shape(rule), earlier))
        if hasattr(rule.filter, "rewrite"):
            earlier = (*earlier, (_shape(rule), rule.languages, rule.excluded))
    return out


def _shape(rule: Any) -> Any:
    checks = getattr(rule.filter, "CHECKS", None)
    if checks is None:
        return None
    thresholds = {name for name, _, _ in checks}
    return type(rule.filter), tuple(getattr(rule.filter, f.name) for f in fields(rule.filter) if f.name not in thresholds)


def _judge_recorded(recipe: Recipe, table: pa.Table, columns: dict[str, np.ndarray]) -> Trial:
    languages, profiles = np.array(table.column("language").to_pylist(), object), np.array(table.column("profile").to_pylist(), object)
    was_empty = np.array([r == "empty" for r in table.column("rule").to_pylist()], bool)
    count = table.num_rows
    trial = Trial(table.column("id").to_pylist(), [None] * count, {}, {}, {}, "values")

    def record(rule: str, rows: np.ndarray, values: np.ndarray, failed: np.ndarray) -> None:
        trial.values.setdefault(rule, np.full(count, np.nan))[rows] = values
        trial.failed.setdefault(rule, np.zeros(count, bool))[rows] |= failed
        for i in rows[failed].tolist():
            trial.reasons[i] = trial.reasons[i] or rule

    every = np.arange(count)
    if was_empty.any():
        record("empty", every, np.where(was_empty, 0.0, 1.0), was_empty)
    if recipe.languages:
        record("language", every, np.zeros(count), ~np.isin(languages, recipe.languages))
    if recipe.min_language_score:
        record("language_score", every, columns["language_score"], columns["language_score"] < recipe.min_language_score)
    for profile in PROFILES:
        for rule in recipe.rules[profile]:
            rows = np.flatnonzero((profiles == profile) & np.array([rule.applies_to(code) for code in languages], bool))
            for check in rule.filter(_Recorded(columns, rows)):
                measured = ~np.isnan(check.values)
                if not measured.all() and not was_empty[rows[~measured]].all():
                    raise KeyError(check.statistic)
                record(check.rule, rows[measured], check.values[measured], check.failed[measured])
    trial.checks = {rule: (failing, limit) for rule, (_, failing, limit) in _known_rules(recipe, profiles.tolist()).items()}
    return trial


# --- the report -----------------------------------------------------------------------------------------------------


def report(trial: Trial, sweep: dict[str, list[float]]) -> dict[str, Any]:
    """Summarise: rates by rule, thresholds that would drop given shares, and the wanted sweeps. Examples are filled in by `add_examples`."""
    count = max(len(trial.ids), 1)
    rules: dict[str, Any] = {}
    for rule, failed in trial.failed.items():
        if not failed.any():
            continue
        first = [i for i, reason in enumerate(trial.reasons) if reason == rule]
        chosen = (first + [i for i in np.flatnonzero(failed).tolist() if trial.reasons[i] != rule])[:NUM_EXAMPLES]
        entry: dict[str, Any] = {"first_fail": len(first) / count, "any_fail": float(failed.mean())}
        if rule in trial.checks:
            entry["threshold"] = trial.checks[rule][1]
        values = trial.values.get(rule)
        entry["examples"] = [{"id": trial.ids[i], "value": None if values is None or np.isnan(values[i]) else round(float(values[i]), 6)} for i in chosen]
        rules[rule] = entry
    out: dict[str, Any] = {
        "documents": len(trial.ids),
        "from": trial.source,
        "kept": sum(r is None for r in trial.reasons),
        "rules": dict(sorted(rules.items(), key=lambda kv: -kv[1]["first_fail"])),
    }
    out["thresholds"] = {rule: _thresholds(trial.values[rule], failing) for rule, (failing, _) in sorted(trial.checks.items()) if rule in trial.values}
    if sweep:
        out["sweep"] = {rule: _sweep(trial, rule, candidates) for rule, candidates in sweep.items()}
    return out


def _thresholds(values: np.ndarray, failing: str) -> dict[str, float]:
    """The thresholds that drop SHARES of the documents, by this rule alone."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return {}
    return {f"{share:g}": round(float(known[min(int(share * len(known)), len(known) - 1)] if failing[0] == "<" else known[max(len(known) - 1 - int(share * len(known)), 0)]), 6) for share in SHARES}


def _sweep(trial: Trial, rule: str, candidates: Sequence[float]) -> list[dict[str, float]]:
    """Of each threshold: how many documents the rule would drop, and how many would be left of all."""
    if rule not in trial.values or rule not in trial.checks:
        raise ValueError(f"sweep: no rule {rule!r} here; known: {', '.join(sorted(trial.checks))}")
    values, failing = trial.values[rule], FAILING[trial.checks[rule][0]]
    others = np.zeros(len(trial.ids), bool)
    for name, failed in trial.failed.items():
        if name != rule:
            others |= failed
    out = []
    for candidate in candidates:
        failed = failing(np.nan_to_num(values, nan=np.inf if trial.checks[rule][0][0] == "<" else -np.inf), float(candidate))
        out.append({"threshold": float(candidate), "any_fail": float(failed.mean()), "kept": int((~(failed | others)).sum())})
    return out


def add_examples(found: dict[str, Any], units: Sequence[DocUnit]) -> None:
    """Look up address and beginning of the examples, reading as few row groups as it takes."""
    wanted: dict[str, list[dict[str, Any]]] = {}
    for rule in found["rules"].values():
        for example in rule["examples"]:
            wanted.setdefault(example["id"], []).append(example)
    for unit in units:
        if not wanted:
            return
        ids = unit.read(["id"]).column("id").to_pylist()
        rows = [i for i, name in enumerate(ids) if name in wanted]
        if not rows:
            continue
        for row in unit.read(["id", "url", "text"]).take(pa.array(rows, pa.int64())).to_pylist():
            for example in wanted.pop(row["id"], []):
                example.update(url=row["url"], snippet=" ".join(row["text"][: 4 * SNIPPET].split())[:SNIPPET])


def table(found: dict[str, Any]) -> str:
    """Lay a report out for people."""
    count = found["documents"]
    lines = [f"{count:,} documents ({'all, from the values of the last run' if found['from'] == 'values' else 'sample'}), {found['kept']:,} kept ({found['kept'] / max(count, 1):.1%})", ""]
    lines.append(f"{'rule':44} {'threshold':>9} {'first':>7} {'any':>7}   would drop 1 % / 5 % / 20 % at")
    for rule, entry in found["rules"].items():
        at = found["thresholds"].get(rule, {})
        limit = f"{entry['threshold']:g}" if "threshold" in entry else ""
        lines.append(f"{rule:44} {limit:>9} {entry['first_fail']:>7.1%} {entry['any_fail']:>7.1%}   {' / '.join(f'{at[s]:.4g}' for s in ('0.01', '0.05', '0.2') if s in at)}")
    for rule, rows in found.get("sweep", {}).items():
        lines += ["", f"{rule}:"] + [f"  {row['threshold']:g} drops {row['any_fail']:.1%}, {row['kept']:,} kept in all" for row in rows]
    for rule, entry in found["rules"].items():
        lines += ["", rule] + [f"  {_width(example)}" for example in entry["examples"]]
    return "\n".join(lines)


def _width(example: dict[str, Any]) -> str:
    value = "" if example["value"] is None else f"{example['value']:.4g}"
    return f"{value:>9}  {example['id'][:12]}  {example.get('url') or ''}  {example.get('snippet', '')[:80]}"
