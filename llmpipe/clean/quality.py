"""A quality classifier: logistic regression on hashed n-grams, trained on texts that are good and texts that are not.

    llmpipe clean --input docs --output cleaned --set quality.positive=good --set quality.negative=random_pages
    llmpipe clean --input more --output cleaned2 --set quality.model=cleaned/models

The recipe of DCLM (Li et al. 2024, fastText on instruction data against the web) and FineWeb-Edu: what looks like the
positives stays. Features are words and pairs of them, in scripts without spaces one to three characters, taken from the
block's token hashes; model and solver are those of `evaluate/linear.py`. English and Chinese share one model: their n-grams
do not meet. Training writes `models/quality.safetensors` and what it measured on examples kept aside (accuracy, AUC, by
language) to `models/quality.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llmpipe.clean.examples import sample_texts, text_hash
from llmpipe.clean.language import identify
from llmpipe.clean.rules import Check
from llmpipe.clean.statistics import Stats
from llmpipe.errors import InputError
from llmpipe.evaluate.linear import NUM_BUCKETS, Bags, LinearClassifier
from llmpipe.text.block import Block, Rolling, blocks
from llmpipe.text.characters import SINGLE

NAME = "quality.safetensors"
MIN_EXAMPLES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Learn which documents are good, or use what was learnt; drop the rest."""

    positive: Path | None = None
    """Good examples: documents, rows with a `text`, or text files. About as many in each language as the input has."""
    negative: Path | None = None
    """The rest: random pages of the same languages."""
    model: Path | None = None
    """Use this model instead: quality.safetensors, or the models/ that holds it."""
    threshold: float = 0.5
    """Drop a document whose probability of being good is below."""
    keep_share: float | None = None
    """Instead of a threshold: keep this share of the documents that pass all other rules, of each language. The cut is found on
    a sample of the first input and stays."""
    max_examples: int = 10_000
    """Of each class that are learnt from."""
    max_chars: int = 5_000_000
    """Of each class that are learnt from. Training takes 1 GB of memory with so many in English, 2 GB in Chinese, and 10 to 20 s."""
    held_out: float = 0.1
    """Share of the examples that is kept aside to measure."""

    def __post_init__(self) -> None:
        if self.model is None and (self.positive is None or self.negative is None):
            raise ValueError("needs `positive` and `negative` to train, or `model` to use one that is trained")
        if self.model is not None and (self.positive or self.negative):
            raise ValueError("has both `model` and examples; leave one of them out")
        if self.keep_share is not None and not 0 < self.keep_share <= 1:
            raise ValueError(f"keep_share {self.keep_share} is not in (0, 1]")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is not between 0 and 1")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} is not between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFilter:
    """The filter that a trained model makes."""

    model: str
    threshold: float
    cutoffs: tuple[tuple[str, float], ...] = ()
    """By language, in place of the threshold; the entry "" is for all others."""

    def __call__(self, stats: Stats) -> Iterator[Check]:
        scores = score(load_model(self.model), stats.block)
        for threshold, mask in by_language(stats, self.cutoffs, self.threshold):
            yield Check("quality.threshold", "quality", scores, threshold, (scores < threshold) & mask)


def by_language(stats: Stats, cutoffs: tuple[tuple[str, float], ...], default: float) -> Iterator[tuple[float, np.ndarray]]:
    """Yield each threshold with the (D,) mask of the documents that it is for."""
    languages = np.array(stats.languages)
    rest = np.ones(len(languages), bool)
    for language, threshold in cutoffs:
        if language:
            yield threshold, languages == language
            rest &= languages != language
    yield dict(cutoffs).get("", default), rest


# --- features ------------------------------------------------------------------------------------------------------


def bags_of(block: Block) -> Bags:
    """Count the block's n-grams: words and pairs of words; of scripts without spaces also three characters."""
    starts = block.word_starts
    docs = np.searchsorted(block.doc_ends, starts, side="right")
    single = block.kinds[starts] == SINGLE
    rolling = Rolling(block.hashes(block.tables.exact, starts))
    keys = []
    for n in (1, 2, 3):
        grams = rolling.advance(n)
        inside = docs[: len(grams)] == docs[n - 1 :] if len(grams) else np.zeros(0, bool)
        if n == 3:
            inside = inside & single[: len(grams)] & single[1:-1] & single[2:]
        keys.append(docs[: len(grams)][inside] * NUM_BUCKETS + (grams[inside] % np.uint64(NUM_BUCKETS)).astype(np.int64))
    pair, count = np.unique(np.concatenate(keys), return_counts=True)
    return Bags(pair // NUM_BUCKETS, pair % NUM_BUCKETS, count, block.num_docs)


def score(model: LinearClassifier, block: Block) -> np.ndarray:
    """Return (D,) probabilities of being good; a document's does not depend on the others of its block."""
    return model.predict_bags(bags_of(block))[:, 1]


# --- training ------------------------------------------------------------------------------------------------------


def train(config: Quality) -> tuple[LinearClassifier, dict[str, Any]]:
    """Train on most examples; return the model and what it does on those kept aside, chosen by the hash of their text."""
    texts, labels = _examples(config)
    aside = np.array([text_hash(t) % 1_000_003 < config.held_out * 1_000_003 for t in texts])
    bags, languages = _bags(texts)
    model = LinearClassifier.fit_bags(_rows(bags, ~aside), labels[~aside], num_classes=2)
    report: dict[str, Any] = {"positive": int((labels == 1).sum()), "negative": int((labels == 0).sum()), "features": len(model.buckets)}
    if len(set(labels[aside].tolist())) < 2:
        return model, {**report, "held_out": {"examples": int(aside.sum())}}
    scores = model.predict_bags(_rows(bags, aside))[:, 1]
    report["held_out"] = _measured(scores, labels[aside])
    kinds = np.array(languages)[aside]
    for language in sorted(set(languages)):
        own = kinds == language
        if own.sum() >= MIN_EXAMPLES and len(set(labels[aside][own].tolist())) == 2:
            report[f"held_out_{language}"] = _measured(scores[own], labels[aside][own])
    return model, report


def _examples(config: Quality) -> tuple[list[str], np.ndarray]:
    """Read both classes; a text that stands in both is no example of either."""
    assert config.positive is not None and config.negative is not None
    good, bad = (sample_texts(p, max_texts=config.max_examples, max_chars=config.max_chars) for p in (config.positive, config.negative))
    both = set(good) & set(bad)
    good, bad = ([t for t in texts if t not in both] for texts in (good, bad))
    for texts, path in ((good, config.positive), (bad, config.negative)):
        if len(texts) < MIN_EXAMPLES:
            raise InputError(f"quality: {path} has {len(texts)} examples of its own, at least {MIN_EXAMPLES} are needed")
    return [*good, *bad], np.array([1] * len(good) + [0] * len(bad))


def _bags(texts: list[str]) -> tuple[Bags, list[str]]:
    parts, languages = [], []
    for start, block in blocks(texts):
        bags = bags_of(block)
        parts.append((bags.row + start, bags.bucket.astype(np.int32), bags.count.astype(np.int32)))
        languages += identify(block)[0]
    row, bucket, count = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Bags(row, bucket, count, len(texts)), languages


def _rows(bags: Bags, chosen: np.ndarray) -> Bags:
    """Take some rows, numbered anew."""
    number = np.cumsum(chosen) - 1
    mask = chosen[bags.row]
    return Bags(number[bags.row[mask]], bags.bucket[mask], bags.count[mask], int(chosen.sum()))


def _measured(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"examples": len(labels), "accuracy": round(float(((scores >= 0.5) == labels).mean()), 4), "auc": round(auc(scores, labels), 4)}


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability that a positive scores higher than a negative (ties count half)."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    positive = int((labels == 1).sum())
    negative = len(labels) - positive
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


# --- files ---------------------------------------------------------------------------------------------------------


def save_model(path: Path, model: LinearClassifier, report: dict[str, Any]) -> None:
    from safetensors.numpy import save

    tensors = {"buckets": model.buckets.astype(np.int64), "idf": model.idf.astype(np.float32), "weight": model.weight.astype(np.float32)}
    path.write_bytes(save(tensors, metadata={"llmpipe": json.dumps({"kind": "quality", "version": 1, "report": report}, sort_keys=True)}))


@cache
def load_model(path: str) -> LinearClassifier:
    """Read a model, once a process; raise `InputError` for anything else."""
    tensors = read_tensors(Path(path), kind="quality", wanted=("buckets", "idf", "weight"))
    buckets, idf, weight = tensors["buckets"], tensors["idf"].astype(float), tensors["weight"]
    if buckets.ndim != 1 or idf.shape != buckets.shape or weight.shape != (len(buckets) + 1, 2) or (np.diff(buckets) <= 0).any():
        raise InputError(f"{path}: its tensors do not fit together", hint="train it anew")
    return LinearClassifier(buckets, idf, weight)


def read_tensors(path: Path, *, kind: str, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read a safetensors file that clean wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("llmpipe", "{}"))
            names = set(file.keys())
            if about.get("kind") != kind or not names.issuperset(wanted):
                raise InputError(f"{path} is not a {kind} model of llmpipe clean")
            return {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", hint=f"llmpipe clean with {kind}.… trains one into OUTPUT/models") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})", hint="restore the file, or train it anew") from None
