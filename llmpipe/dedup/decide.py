"""Decide which documents stay: the first of each group of duplicates, in one pass in order of preference.

    verdicts = decide(contenders, exact=True, near=near)         # {row: Duplicate}

A document is dropped when an earlier one *that stays* has the same words, or shares a band of its signature and at least
`threshold` of its shingles, counted exactly. Nothing is dropped for a document that is itself dropped, so there are no
chains. The pass depends on order alone: neither on workers nor, where the order is that of first sight, on how the input
was cut into generations, so A then B keeps the same set as A and B at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmpipe.dedup.candidates import MAX_RUN, Runs
from llmpipe.dedup.minhash import agreement

AGREEMENT_MARGIN, WIDE_MARGIN = 0.15, 0.3
"""Candidates whose signatures agree less than threshold - 0.15 are not compared: 3.5 standard deviations at 112 minima. In
scripts without spaces 0.3, since there pairs are compared by other shingles than the signature's (see shingles.py)."""
MAX_COMPARED = 32
"""Candidates compared exactly per document, best agreement first."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Why a document is dropped."""

    rule: str
    partner: int
    """Row of the document that stays; -1 where the partner is an evaluation item."""
    similarity: float
    item: str = ""


@dataclass(frozen=True, slots=True)
class Contenders:
    """The documents to decide on, in order of preference."""

    rows: np.ndarray
    """(D,) row of each, over all generations."""
    texts: np.ndarray
    """(D,) number of its text; -1 where no other has it."""
    contents: np.ndarray
    """(D,) hash of its bytes."""
    old_texts: dict[int, tuple[int, int]]
    """Texts that stand in the output: number to (row, hash of the bytes)."""


@dataclass(frozen=True, slots=True)
class Near:
    """What the search for near-duplicates needs."""

    threshold: float
    runs: Runs
    """By the contenders' place in the order."""
    margin: Callable[[int], float]
    """How far below the threshold the agreement of signatures may be, by row."""
    alive: Callable[[int], bool]
    """Whether an old row is in the output still."""
    signatures: Callable[[np.ndarray], np.ndarray]
    """(n,) rows to (n, num_perm)."""
    similarity: Callable[[int, int], float]
    """Exact Jaccard of two rows."""


def decide(new: Contenders, *, near: Near | None = None) -> dict[int, Duplicate]:
    """Return why documents are dropped, by row, for those that are."""
    out: dict[int, Duplicate] = {}
    kept_texts = dict(new.old_texts)
    dropped_texts: dict[int, Duplicate] = {}
    stays = np.zeros(len(new.rows), bool)
    involved = new.texts >= 0
    if near is not None:
        involved[near.runs.docs()] = True
    for i in np.flatnonzero(involved).tolist():
        row, text, content = int(new.rows[i]), int(new.texts[i]), int(new.contents[i])
        verdict = _same_text(text, content, kept_texts, dropped_texts) if text >= 0 else None
        if verdict is None and near is not None:
            verdict = _near(i, new.rows, stays, near)
        stays[i] = verdict is None
        if verdict is not None:
            out[row] = verdict
        if text >= 0 and verdict is None:
            kept_texts.setdefault(text, (row, content))
        elif text >= 0:
            dropped_texts.setdefault(text, verdict)
    return out


def _same_text(text: int, content: int, kept: dict[int, tuple[int, int]], dropped: dict[int, Duplicate]) -> Duplicate | None:
    if text in kept:
        partner, theirs = kept[text]
        return Duplicate("exact" if content == theirs else "exact_normalized", partner, 1.0)
    # the same words as one that was dropped as a near-duplicate: so is this, of the same partner
    return dropped.get(text)


def _near(i: int, rows: np.ndarray, stays: np.ndarray, near: Near) -> Duplicate | None:
    own_runs = near.runs.runs_of(i)
    if not own_runs:
        return None
    parts = [before[stays[before]][:MAX_RUN] for before in (near.runs.before(run, i) for run in own_runs) if len(before)]
    others = set(rows[np.concatenate(parts)].tolist()) if parts else set()
    if len(near.runs.old):
        old = {other for run in own_runs for other in near.runs.old_of(run)}
        others.update(other for other in old if near.alive(other))
    if not others:
        return None
    row, ordered = int(rows[i]), sorted(others)  # in order of first sight
    found = near.signatures(np.array([row, *ordered], np.int64))
    likely = agreement(found[0], found[1:])
    least = near.threshold - near.margin(row)
    for k in np.argsort(-likely, kind="stable")[:MAX_COMPARED].tolist():
        if likely[k] < least:
            break
        exact = near.similarity(row, ordered[k])
        if exact >= near.threshold:
            return Duplicate("near", ordered[k], exact)
    return None
