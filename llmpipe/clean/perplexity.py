"""Perplexity under a small n-gram model of a reference text: how usual the wording of a document is.

    llmpipe clean --input docs --output cleaned --set perplexity.reference=wikipedia --set 'perplexity.keep=[head, middle]'

CCNet's filter (Wenzek et al. 2020, section 4) without KenLM: interpolated Kneser-Ney (one discount an order, Ney's estimate)
on hashed words, where a Chinese character is a word; case and digits are folded and punctuation is left out, as there. The
table is bounded (`max_ngrams` an order; rarer ones give their mass to the shorter context, so the probabilities still sum
to one). Documents are scored a block at a time. English and Chinese share one model, but never a cutoff: head, middle and tail
are found for each language.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmpipe.clean.examples import sample_texts
from llmpipe.clean.quality import by_language, read_tensors
from llmpipe.clean.rules import Check
from llmpipe.clean.statistics import Stats
from llmpipe.errors import InputError
from llmpipe.text.block import Block, Rolling, blocks

NAME = "perplexity.safetensors"
PARTS = ("head", "middle", "tail")


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """Measure how usual the wording is; drop what is unlike the reference."""

    reference: Path | None = None
    """Text to learn from, such as an encyclopedia or manuals in the languages of the input: documents, rows or text files."""
    model: Path | None = None
    """Use this model instead: perplexity.safetensors, or the models/ that holds it."""
    keep: list[Literal["head", "middle", "tail"]] = field(default_factory=lambda: ["head", "middle"])
    """Which parts of the documents that pass all other rules stay, from usual to strange, within each language. The bounds are
    found on a sample of the first input and stay."""
    head: float = 0.3
    """Share of the documents that are the head."""
    middle: float = 0.3
    """Share that is the middle; the rest is the tail. CCNet cuts in thirds at 30 and 60 %."""
    max: float | None = None
    """Instead of parts: drop a document with a higher perplexity (2 to the bits a token)."""
    min: float | None = None
    """Drop a document with a lower one: endless repetition of common words."""
    order: int = 3
    """Words of an n-gram; CCNet has 5, with 3 a small reference does better."""
    max_chars: int = 10_000_000
    """Of the reference that are read: 2 million English words, or 9 million Chinese characters, in half a gigabyte of memory."""
    max_ngrams: int = 4_000_000
    """Of each order that are kept, the most frequent ones."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.reference is None):
            raise ValueError("needs either `reference` to learn from or `model` to use one that is trained")
        if not 2 <= self.order <= 6:
            raise ValueError(f"order {self.order} is not between 2 and 6")
        if not (0 < self.head < 1 and 0 <= self.middle < 1 and self.head + self.middle < 1):
            raise ValueError(f"head {self.head} and middle {self.middle} leave no tail")
        if not self.keep:
            raise ValueError("keep is empty; name head, middle or tail")
        if self.max is None and self.min is None and set(self.keep) not in ({"head"}, {"middle"}, {"tail"}, {"head", "middle"}, {"middle", "tail"}, set(PARTS)):
            raise ValueError(f"keep {', '.join(self.keep)} leaves out the middle")

    @property
    def by_share(self) -> bool:
        return self.max is None and self.min is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PerplexityFilter:
    """The filter that a model makes."""

    model: str
    max: float = np.inf
    min: float = 0.0
    max_cutoffs: tuple[tuple[str, float], ...] = ()
    """By language, in place of `max`; the entry "" is for all others."""
    min_cutoffs: tuple[tuple[str, float], ...] = ()

    def __call__(self, stats: Stats) -> Iterator[Check]:
        bits = load_model(self.model).bits_per_token(stats.block)
        perplexity = np.exp2(bits)  # NaN for a document without words, which fails no comparison
        for threshold, mask in by_language(stats, self.max_cutoffs, self.max):
            yield Check("perplexity.max", "perplexity", perplexity, threshold, (perplexity > threshold) & mask)
        for threshold, mask in by_language(stats, self.min_cutoffs, self.min):
            yield Check("perplexity.min", "perplexity", perplexity, threshold, (perplexity < threshold) & mask)


# --- the model -----------------------------------------------------------------------------------------------------


class Table:
    """Sorted hashes with a look-up of many at a time: their upper bits lead to a bucket of one or two on average."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self.bits = np.uint64(max(len(keys).bit_length(), 1))
        shift = np.uint64(64) - self.bits
        self.shift = shift
        counts = np.bincount((keys >> shift).astype(np.int64), minlength=1 << int(self.bits))
        self.starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Return the place of each key, -1 where it is not there."""
        out = np.full(len(wanted), -1, np.int64)
        bucket = (wanted >> self.shift).astype(np.int64)
        at, end = self.starts[bucket], self.starts[bucket + 1]
        left = np.flatnonzero(at < end)
        at, end = at[left], end[left]
        while len(left):
            hit = self.keys[at] == wanted[left]
            out[left[hit]] = at[hit]
            at = at + 1
            going = ~hit & (at < end)
            left, at, end = left[going], at[going], end[going]
        return out


@dataclass(frozen=True, slots=True)
class NgramModel:
    """Interpolated n-gram probabilities by hash: P(w | c) = p(c w) + rest(c) P(w | c without its first word)."""

    grams: tuple[Table, ...]
    """By order, from 1."""
    probabilities: tuple[np.ndarray, ...]
    """(entries,) float32 discounted probability of each n-gram."""
    contexts: tuple[Table, ...]
    """By order of the n-gram, from 2: the n - 1 words before."""
    rests: tuple[np.ndarray, ...]
    """(contexts,) float32 mass that is left for the shorter context."""
    base: float
    """Probability that any word has at least: the rest of order 1 over the number of known words and one unknown."""

    def log2(self, hashes: np.ndarray, docs: np.ndarray) -> np.ndarray:
        """Return (T,) log2 P of each token given those before it in its document."""
        rolling = Rolling(hashes)
        before = rolling.advance(1)
        p = np.full(len(hashes), self.base)
        place = self.grams[0].find(before)
        p[place >= 0] += self.probabilities[0][place[place >= 0]]
        for n in range(2, len(self.grams) + 1):
            grams = rolling.advance(n)
            if not len(grams):
                break
            inside = np.flatnonzero(docs[: len(grams)] == docs[n - 1 :])
            context = self.contexts[n - 2].find(before[inside])
            known = np.flatnonzero(context >= 0)
            inside, context = inside[known], context[known]
            place = self.grams[n - 1].find(grams[inside])
            token = inside + n - 1
            p[token] *= self.rests[n - 2][context]
            hit = place >= 0
            p[token[hit]] += self.probabilities[n - 1][place[hit]]
            before = grams
        return np.log2(p)

    def bits_per_token(self, block: Block) -> np.ndarray:
        """Return (D,) bits, NaN for a document without words."""
        hashes, docs = tokens_of(block)
        counts = block.per_doc(docs).astype(float)
        return -block.per_doc(docs, self.log2(hashes, docs)) / np.where(counts, counts, np.nan)


def tokens_of(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes of the words and their documents."""
    starts = block.word_starts
    return block.hashes(block.tables.folded, starts), np.searchsorted(block.doc_ends, starts, side="right")


def train(texts: list[str], *, order: int, max_ngrams: int) -> tuple[NgramModel, dict[str, Any]]:
    """Count n-grams and turn the counts into probabilities."""
    hashes, docs = [], []
    for start, block in blocks(texts):
        h, d = tokens_of(block)
        hashes.append(h)
        docs.append((d + start).astype(np.int32))
    h, d = np.concatenate(hashes), np.concatenate(docs)
    if len(h) < 1_000:
        raise InputError(f"perplexity: the reference has {len(h)} words, at least 1,000 are needed")
    rolling = Rolling(h)
    sums = [rolling.advance(n) for n in range(1, order + 1)]
    grams, probabilities, contexts, rests = [], [], [], []
    base = 0.0
    longer: np.ndarray | None = None  # where the n-grams one longer begin, each once
    for n in range(order, 0, -1):
        inside = np.flatnonzero(d[: len(sums[n - 1])] == d[n - 1 :])
        if longer is None:  # the longest: how often each occurs
            keys, first, counts = np.unique(sums[n - 1][inside], return_index=True, return_counts=True)
        else:  # shorter ones: after how many different words each occurs
            inside = longer + 1
            keys, first, counts = np.unique(sums[n - 1][inside], return_index=True, return_counts=True)
        first = inside[first]
        longer = first
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = min(max(once / max(once + 2 * twice, 1), 0.1), 0.95)
        context = sums[n - 2][first] if n > 1 else np.zeros(len(first), np.uint64)
        heads, owner = np.unique(context, return_inverse=True)
        p = (counts - discount) / np.bincount(owner, counts)[owner]
        if len(keys) > max_ngrams:
            least = np.partition(counts, len(counts) - max_ngrams)[len(counts) - max_ngrams]
            kept = counts > least if (counts > least).any() else np.arange(len(counts)) < max_ngrams
            keys, owner, p = keys[kept], owner[kept], p[kept]
        rest = 1 - np.bincount(owner, p, minlength=len(heads))
        grams.append(keys)
        probabilities.append(p.astype(np.float32))
        if n > 1:
            used = np.bincount(owner, minlength=len(heads)) > 0
            contexts.append(heads[used])
            rests.append(rest[used].astype(np.float32))
        else:
            base = float(rest[0]) / (len(keys) + 1)
    model = NgramModel(tuple(map(Table, grams[::-1])), tuple(probabilities[::-1]), tuple(map(Table, contexts[::-1])), tuple(rests[::-1]), base)
    return model, {"tokens": len(h), "ngrams": [len(k) for k in grams[::-1]]}


def learn(config: Perplexity) -> tuple[NgramModel, dict[str, Any]]:
    """Read the reference and train."""
    assert config.reference is not None
    texts = sample_texts(config.reference, max_texts=10_000_000, max_chars=config.max_chars)
    model, report = train(texts, order=config.order, max_ngrams=config.max_ngrams)
    return model, {"texts": len(texts), **report}


# --- files ---------------------------------------------------------------------------------------------------------


def save_model(path: Path, model: NgramModel, report: dict[str, Any]) -> None:
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {"base": np.array([model.base])}
    for n, (table, p) in enumerate(zip(model.grams, model.probabilities, strict=True), 1):
        tensors |= {f"grams_{n}": table.keys, f"probabilities_{n}": p}
    for n, (table, rest) in enumerate(zip(model.contexts, model.rests, strict=True), 2):
        tensors |= {f"contexts_{n}": table.keys, f"rests_{n}": rest}
    about = {"kind": "perplexity", "version": 1, "order": len(model.grams), "report": report}
    path.write_bytes(save(tensors, metadata={"llmpipe": json.dumps(about, sort_keys=True)}))


@cache
def load_model(path: str) -> NgramModel:
    """Read a model, once a process; raise `InputError` for anything else."""
    tensors = read_tensors(Path(path), kind="perplexity", wanted=("base", "grams_1", "probabilities_1", "grams_2", "contexts_2"))
    order = sum(name.startswith("grams_") for name in tensors)
    try:
        grams, ps = ([tensors[f"{name}_{n}"] for n in range(1, order + 1)] for name in ("grams", "probabilities"))
        contexts, rests = ([tensors[f"{name}_{n}"] for n in range(2, order + 1)] for name in ("contexts", "rests"))
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]} is missing", hint="train it anew") from None
    for keys, values in [*zip(grams, ps, strict=True), *zip(contexts, rests, strict=True)]:
        if keys.dtype != np.uint64 or keys.shape != values.shape or keys.ndim != 1 or (keys[1:] <= keys[:-1]).any():
            raise InputError(f"{path}: its tensors do not fit together", hint="train it anew")
    return NgramModel(tuple(map(Table, grams)), tuple(ps), tuple(map(Table, contexts)), tuple(rests), float(tensors["base"][0]))
