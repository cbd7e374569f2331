"""Normalise, identify, measure, judge and redact a batch of texts: what clean does to documents, without files.

    verdict = judge(texts, recipe)      # recipe = Recipe.of(config)
    verdict.texts[i], verdict.reasons[i], verdict.values["num_words"][i]

Filters see whole blocks. A filter that rewrites (C4's line rules) hands new texts to those after it. Every rule is
evaluated for every document, so that thresholds can be compared later without another pass.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np

from llmpipe.clean.boilerplate import Frozen
from llmpipe.clean.language import identify
from llmpipe.clean.normalize import REPLACEMENT, normalize
from llmpipe.clean.pii import KINDS, find, redact
from llmpipe.clean.presets import PRESETS
from llmpipe.clean.rules import FILTERS, Check, Rule
from llmpipe.clean.statistics import Stats
from llmpipe.clean.urls import UrlBlocker, UrlLists, load_urls
from llmpipe.config import load, nearest
from llmpipe.errors import UsageError
from llmpipe.text.block import Block, blocks

PROFILES = ("en", "zh", "words", "characters")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a document is dropped: the first rule it failed."""

    rule: str
    value: Any
    threshold: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A config made ready: the rules of each profile in order."""

    rules: dict[str, list[Rule]]
    languages: tuple[str, ...]
    min_language_score: float
    pii: str
    pii_kinds: tuple[str, ...] = KINDS
    urls: UrlLists | None = None

    @classmethod
    def of(cls, config: Any, models: Sequence[Any] = ()) -> Recipe:
        """Resolve names of presets and filters; raise `ValueError` that lists the known ones. `models` are filters that come last."""
        languages = tuple(_primary(code) for code in config.languages)
        rules = build_rules(config.presets, config.filters)
        for chosen in rules.values():
            chosen += [Rule(f) for f in (config.bad_words, config.toxicity, *models) if f is not None]
        return cls(rules=rules, languages=languages, min_language_score=config.min_language_score, pii=config.pii, pii_kinds=tuple(config.pii_kinds), urls=config.urls)


@dataclass(slots=True)
class Verdict:
    """What became of D texts."""

    texts: list[str]
    """As they are to be written: normalised, rewritten, redacted."""
    languages: list[str]
    scores: np.ndarray
    """(D,) float32 of the language."""
    profiles: list[str]
    reasons: list[Reason | None]
    values: dict[str, np.ndarray]
    """(D,) float32 of each statistic, NaN where no rule asked for it."""
    failed: dict[str, np.ndarray]
    """(D,) bool by rule, whether or not an earlier rule had dropped the document."""
    counts: Counter[str] = field(default_factory=Counter)


def judge(
    texts: Sequence[str], recipe: Recipe, urls: Sequence[str | None] | None = None, *, domains: Sequence[str] = (), boilerplate: Frozen | None = None
) -> Verdict:
    """Judge texts. Each one's verdict depends on nothing but itself, its URL, the recipe and what is frozen as its domain's boilerplate."""
    clean = [normalize(t) for t in texts]
    n = len(clean)
    lost = None
    if boilerplate is not None:
        without, lost = boilerplate.remove(clean, domains)
        clean = [without.get(i, t) for i, t in enumerate(clean)]
    out = Verdict(clean, [""] * n, np.zeros(n, np.float32), [""] * n, [None] * n, {}, {})
    out.counts["normalized"] = sum(a != b for a, b in zip(texts, clean, strict=True))
    out.counts["replacement_chars"] = sum(t.count(REPLACEMENT) for t in clean if not t.isascii())
    if lost is not None:
        out.values["boilerplate_lines"] = lost.astype(np.float32)
        out.counts["boilerplate_lines"] = int(lost.sum())
    if recipe.urls is not None and urls is not None:
        _judge_urls(urls, recipe.urls, out)
    for start, block in blocks(clean):
        _judge_block(block, start, recipe, out)
    if recipe.pii != "off":
        _apply_pii(out, recipe.pii, recipe.pii_kinds)
    out.counts.update(f"language.{code}" for code, reason in zip(out.languages, out.reasons, strict=True) if reason is None)
    return out


_blockers: dict[str, UrlBlocker] = {}  # by the config of the lists: they are read once a process


def _judge_urls(urls: Sequence[str | None], lists: UrlLists, out: Verdict) -> None:
    if repr(lists) not in _blockers:
        _blockers[repr(lists)] = load_urls(lists)
    for i, url in enumerate(urls):
        if reason := _blockers[repr(lists)].reason(url):
            _drop(out, i, *reason)


def _judge_block(block: Block, start: int, recipe: Recipe, out: Verdict) -> None:
    languages, scores = identify(block)
    stats = Stats(block, languages)
    here = np.arange(start, start + block.num_docs)
    out.languages[start : start + block.num_docs], out.profiles[start : start + block.num_docs] = languages, stats.profiles
    out.scores[here] = scores
    for i in here.tolist():
        code = out.languages[i]
        if not out.texts[i]:
            _drop(out, i, "empty", 0, 1)
        elif recipe.languages and code not in recipe.languages:
            _drop(out, i, "language", code, ",".join(recipe.languages))
        elif out.scores[i] < recipe.min_language_score:
            _drop(out, i, "language_score", float(out.scores[i]), recipe.min_language_score)
    for name in PROFILES:
        rules = recipe.rules[name]
        own = [k for k, p in enumerate(stats.profiles) if p == name]
        if not own or not rules:
            continue
        if len(own) == block.num_docs:
            _apply(rules, stats, here, out)
        else:
            _apply(rules, Stats(Block([block.texts[k] for k in own]), [languages[k] for k in own]), here[own], out)


def _apply(rules: list[Rule], stats: Stats, numbers: np.ndarray, out: Verdict) -> None:
    """Apply filters in order; `numbers` are the documents' places in `out`."""
    for rule in rules:
        applies = np.array([rule.applies_to(code) for code in stats.languages])
        if not applies.any():
            continue
        for check in rule.filter(stats):
            _record(check, applies, numbers, out)
        rewrite = getattr(rule.filter, "rewrite", None)
        if rewrite is None:
            continue
        new = {k: text for k, text in rewrite(stats).items() if applies[k]}
        if new:
            for k, text in new.items():
                out.texts[numbers[k]] = text
                if not text:
                    _drop(out, int(numbers[k]), "empty", 0, 1)
            out.counts["rewritten"] += len(new)
            stats = Stats(Block([new.get(k, text) for k, text in enumerate(stats.block.texts)]), stats.languages)


def _record(check: Check, applies: np.ndarray, numbers: np.ndarray, out: Verdict) -> None:
    size = len(out.texts)
    values = out.values.setdefault(check.statistic, np.full(size, np.nan, np.float32))
    values[numbers[applies]] = check.values[applies]
    failed = check.failed & applies
    out.failed.setdefault(check.rule, np.zeros(size, bool))[numbers] |= failed
    for k in np.flatnonzero(failed).tolist():
        _drop(out, int(numbers[k]), check.rule, float(check.values[k]), check.threshold)


def _drop(out: Verdict, i: int, rule: str, value: Any, threshold: Any) -> None:
    if rule not in out.failed:
        out.failed[rule] = np.zeros(len(out.texts), bool)
    out.failed[rule][i] = True
    if out.reasons[i] is None:
        out.reasons[i] = Reason(rule, value, threshold)


def _apply_pii(out: Verdict, mode: str, kinds: Sequence[str]) -> None:
    """Redact personal data in the documents that are left, or drop those that hold any."""
    for i, text in enumerate(out.texts):
        if out.reasons[i] is not None:
            continue
        if mode == "redact":
            out.texts[i], found = redact(text, kinds)
        else:
            found = Counter(kind for _, _, kind in find(text, kinds))
            for kind in KINDS:
                if found[kind]:
                    _drop(out, i, f"pii.{kind}", found[kind], 0)
        out.counts.update({f"pii.{kind}": n for kind, n in found.items()})


# --- names to rules ------------------------------------------------------------------------------------------------


def build_rules(presets: Sequence[str], filters: Sequence[Any]) -> dict[str, list[Rule]]:
    """Turn presets and the `filters` list into the rules of each profile.

    An entry of `filters` is a name, or `{name: {threshold: value}}`: it overrides those thresholds in the presets that
    hold the filter and adds it where none does; `{name: off}` takes it out. `languages` among the parameters limits an entry.
    """
    chosen: dict[str, list[Rule]] = {p: [] for p in PROFILES}
    for name in presets:
        if name not in PRESETS:
            raise ValueError(f"presets: unknown {name!r}{nearest(name, PRESETS)} (llmpipe list presets)")
        for profile, variant in PRESETS[name]().items():
            chosen[profile] += [Rule(f) for f in variant if Rule(f) not in chosen[profile]]
    for entry in filters:
        name, params = _entry(entry)
        kind = find_filter(name)
        if params is None:
            chosen = {p: [r for r in rules if type(r.filter) is not kind] for p, rules in chosen.items()}
            continue
        params = dict(params)
        languages = params.pop("languages", [])
        languages = tuple(_primary(c) for c in ([languages] if isinstance(languages, str) else languages))
        given = _parse(kind, name, params)
        for rules in chosen.values():
            _merge(rules, kind, given, languages)
    return chosen


def _entry(entry: Any) -> tuple[str, dict[str, Any] | None]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, params),) = entry.items()
        if params in ("off", "null", None, False, "false"):
            return name, None
        if params in ("", "on", "true", True):
            return name, {}
        if isinstance(params, dict):
            return name, params
    raise ValueError(f"filters: expected a name, {{name: {{threshold: value}}}} or {{name: off}}, got {entry!r}")


def find_filter(name: str) -> type:
    """Return a filter's class by its name in FILTERS or as "package.module:Name"."""
    if name in FILTERS:
        return FILTERS[name]
    if ":" not in name:
        raise ValueError(f"filters: unknown {name!r}{nearest(name, FILTERS)} (llmpipe list filters, or package.module:Name)")
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"filters: {name!r} cannot be imported ({error})") from None
    if not (isinstance(kind, type) and is_dataclass(kind) and any("__call__" in vars(c) for c in kind.__mro__)):
        raise ValueError(f"filters: {name!r} is not a dataclass with __call__(stats)")
    return kind


def _parse(kind: type, name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Check parameters against the filter's fields; return those that were given, typed."""
    params = {k: None if v in ("null", "~", "", "off") else v for k, v in params.items()}  # YAML keeps them as text in free-form fields
    try:
        whole = load(kind, stage=f"filters.{name}", mapping=params, environ={})
    except UsageError as error:
        raise ValueError(error.message) from None
    return {key: getattr(whole, key) for key in params}


def _merge(rules: list[Rule], kind: type, given: dict[str, Any], languages: tuple[str, ...]) -> None:
    held = [i for i, rule in enumerate(rules) if type(rule.filter) is kind and not rule.languages]
    for i in held:
        changed = replace(rules[i].filter, **given)
        if languages:  # the preset's thresholds stay for all others
            rules[i] = replace(rules[i], excluded=(*rules[i].excluded, *languages))
            rules.append(Rule(changed, languages))
        else:
            rules[i] = replace(rules[i], filter=changed)
    if not held:
        rules.append(Rule(kind(**given), languages))


def _primary(code: str) -> str:
    """Reduce a BCP-47 code to its language: zh-Hant-TW is zh."""
    return code.replace("_", "-").partition("-")[0].lower()
