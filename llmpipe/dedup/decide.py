"""Decide which documents stay: the first seen of each group of duplicates, in one pass in order of first sight.

    decisions = decide(contenders, ...)

A document is dropped when an earlier one *that stays* has the same words, or shares a band of its signature and at least
`threshold` of its shingles, counted exactly. Nothing is dropped for a document that is itself dropped, so there are no
chains. The pass depends on order alone: neither on workers nor on how the input was cut into generations, so A then B
keeps the same set as A and B at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmpipe.dedup.candidates import Runs
from llmpipe.dedup.minhash import agreement

AGREEMENT_MARGIN = 0.15
"""Candidates whose signatures agree less than threshold - 0.15 are not compared: 3.5 standard deviations at 112 minima."""
MAX_COMPARED = 32
"""Candidates compared exactly per document, best agreement first."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a document is dropped."""

    rule: str
    partner: int
    """Number of the document that stays: new ones 0, 1, …; old ones as -1 - row."""
    similarity: float


@dataclass(frozen=True, slots=True)
class Contenders:
    """The documents to decide on, in order of first sight."""

    text_hashes: Sequence[bytes]
    content_hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Near:
    """What the search for near-duplicates needs."""

    threshold: float
    runs: Runs
    signatures: np.ndarray
    """(D, num_perm) of the contenders."""
    old_alive: Callable[[int], bool]
    """Whether an old row is in the output still."""
    old_signatures: Callable[[np.ndarray], np.ndarray]
    similarity: Callable[[int, int], float]
    """Exact Jaccard of two documents, numbered as `Duplicate.partner` is."""


def decide(
    new: Contenders,
    *,
    exact: bool,
    old_texts: dict[bytes, tuple[int, bytes]],
    near: Near | None = None,
) -> list[Duplicate | None]:
    """Return for each contender why it is dropped, or None.

    `old_texts` has the kept documents of older generations by text hash: (row, content hash).
    """
    out: list[Duplicate | None] = [None] * len(new.text_hashes)
    kept_texts: dict[bytes, tuple[int, bytes]] = {k: (-1 - row, content) for k, (row, content) in old_texts.items()}
    dropped_texts: dict[bytes, Duplicate] = {}
    repeated = _repeated(new.text_hashes)
    in_run: dict[int, list[int]] = {}
    for i, text in enumerate(new.text_hashes):
        verdict = _same_text(text, new.content_hashes[i], kept_texts, dropped_texts) if exact else None
        own_runs = near.runs.runs_of(i) if near is not None else []
        if verdict is None and own_runs:
            verdict = _near(i, own_runs, in_run, near)
            if verdict is None:
                for run in own_runs:
                    in_run.setdefault(run, []).append(i)
        out[i] = verdict
        if exact and text in repeated:
            if verdict is None:
                kept_texts.setdefault(text, (i, new.content_hashes[i]))
            else:
                dropped_texts.setdefault(text, verdict)
    return out


def _repeated(texts: Sequence[bytes]) -> set[bytes]:
    """Text hashes that occur twice: only they need remembering."""
    seen: set[bytes] = set()
    again: set[bytes] = set()
    for text in texts:
        (again if text in seen else seen).add(text)
    return again


def _same_text(text: bytes, content: bytes, kept: dict[bytes, tuple[int, bytes]], dropped: dict[bytes, Duplicate]) -> Duplicate | None:
    if text in kept:
        partner, theirs = kept[text]
        return Duplicate("exact" if content == theirs else "exact_normalized", partner, 1.0)
    # the same words as one that was dropped as a near-duplicate: so is this, of the same partner
    return dropped.get(text)


def _near(i: int, own_runs: list[int], in_run: dict[int, list[int]], near: Near) -> Duplicate | None:
    new = sorted({j for run in own_runs for j in in_run.get(run, ())})
    old = sorted({row for run in own_runs for row in near.runs.old_of(run) if near.old_alive(row)})
    if not new and not old:
        return None
    agreements = []
    if old:
        agreements.append(agreement(near.signatures[i], near.old_signatures(np.array(old, np.int64))))
    if new:
        agreements.append(agreement(near.signatures[i], near.signatures[new]))
    likely = np.concatenate(agreements)
    numbers = [*(-1 - row for row in old), *new]  # in order of first sight
    for k in np.argsort(-likely, kind="stable")[:MAX_COMPARED].tolist():
        if likely[k] < near.threshold - AGREEMENT_MARGIN:
            break
        exact = near.similarity(i, numbers[k])
        if exact >= near.threshold:
            return Duplicate("near", numbers[k], exact)
    return None
