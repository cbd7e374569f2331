"""Bring new documents, what is remembered of old ones, and candidates together; decide; and hand out what to write.

`merge(config, work, sources)` runs in one process between the parallel phases. It also sees to growth:

- The later row of an id supersedes the earlier; `gone` takes the id out.
- A representative stays until its id changes or goes. Then the documents that were dropped for it contend again, each in
  the place of its first sight, before all that is new: so their cluster elects another.
- An id that was in the output and is dropped now, or gone, is written as `gone`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from llmpipe.data.docs import DocUnit
from llmpipe.dedup.candidates import Sorted, find_runs, sort_bands
from llmpipe.dedup.decide import AGREEMENT_MARGIN, WIDE_MARGIN, Contenders, Duplicate, Near, decide
from llmpipe.dedup.index import AGAIN, DROPPED, GONE, KEPT, SUPERSEDED, Rows, Source, locate, read_index, write_generation
from llmpipe.dedup.minhash import band_keys
from llmpipe.dedup.urls import outdated, pending_urls
from llmpipe.dedup.verify import ShingleSets
from llmpipe.dedup.write import Dropped, Part
from llmpipe.work import Work

CHUNK_ROWS = 8_192
"""Signatures in memory at a time: 3.7 MB."""


def contending_again(config: Any, work: Work) -> list[Source]:
    """Find the documents that were dropped for one which the new input changes or takes out."""
    if work.previous is None:
        return []
    old, _ = read_index(work, [])
    ids = Ids(old)
    pending = np.array(sorted({i for unit in work.doc_units() for i in unit.read(["id"]).column("id").to_pylist()}))
    lost = ids.last & ids.among(pending)
    again = np.zeros(len(old), bool)
    if config.url == "newest":
        replaced = ids.last & ~lost & (old.statuses == KEPT) & outdated(old, pending_urls(work))
        lost |= replaced
        again |= replaced
    has_partner = ids.last & (old.statuses == DROPPED) & (old.partners >= 0)
    again |= has_partner & lost[old.partners] & ~lost
    rows: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(again).tolist():
        rows[old.name_of(row).removeprefix(AGAIN)].append(int(old.rows[row]))
    return [Source(AGAIN + name, locate(work, name), sorted(own)) for name, own in sorted(rows.items())]


class Ids:
    """Which rows belong to one id, and which of them is the first and the last."""

    def __init__(self, rows: Rows) -> None:
        self._ids = rows.ids
        order = np.lexsort((rows.ids[:, 1], rows.ids[:, 0]))
        ranked = rows.ids[order]
        opens = np.ones(len(order), bool)
        opens[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
        starts = np.flatnonzero(opens)
        self.first = np.empty(len(order), np.int64)
        """(n,) the first row of each row's id."""
        sizes = np.diff(np.append(starts, len(order)))
        self.first[order] = np.repeat(order[starts], sizes)  # lexsort is stable: rows of an id stand in order
        self.last = np.zeros(len(order), bool)
        """(n,) whether a row is the last of its id."""
        self.last[order[np.append(starts[1:], len(order))[: len(starts)] - 1]] = True

    def among(self, ids: np.ndarray) -> np.ndarray:
        """(n,) whether a row's id is one of some, sorted and in hex."""
        if not len(ids):
            return np.zeros(len(self._ids), bool)
        wanted = np.frombuffer(bytes.fromhex("".join(ids.tolist())), np.void(16).dtype)
        return np.isin(np.ascontiguousarray(self._ids).view(np.void(16).dtype)[:, 0], wanted)


def merge(config: Any, work: Work, sources: list[Source]) -> tuple[Rows, list[Part]]:
    """Decide on all pending documents, write this generation's index, and return the parts to write."""
    rows, bands = read_index(work, sources)
    state = _State(rows)
    verdicts = _decide(config, work, state, bands)
    state.settle(verdicts)
    write_generation(work, rows, _sorted_bands(config.near, rows))
    return rows, _parts(config, sources, state, verdicts)


class _State:
    """Old and new rows side by side, and which of them count."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        ids = Ids(rows)
        old = np.arange(len(rows)) < rows.num_old
        self.last = ids.last
        self.live = old & ids.last & (rows.statuses == KEPT)
        """Old rows that are in the output and stay there: their id has no new row."""
        self.was_kept = np.zeros(len(rows), bool)
        """New rows whose id was in the output."""
        previous = np.full(len(rows), -1, np.int64)
        previous[ids.first[old]] = np.flatnonzero(old)  # the last old row of each id, at its first row
        before = previous[ids.first]
        found = (~old) & (before >= 0)
        self.was_kept[found] = rows.statuses[before[found]] == KEPT
        self.first = ids.first

    def order(self) -> np.ndarray:
        """New rows to decide on, best first: what was seen before; then by source, length (where asked for) and first sight."""
        rows = np.flatnonzero(self.last[self.rows.num_old :] & ~self.rows.gone[self.rows.num_old :]) + self.rows.num_old
        first = self.first[rows]
        seen = first < self.rows.num_old
        ranks = np.where(seen, 0, self.rows.ranks[rows])
        lengths = np.where(seen, 0, self.rows.lengths[rows].astype(np.int64))
        return rows[np.lexsort((first, -lengths, ranks, ~seen))]

    def settle(self, verdicts: dict[int, Duplicate]) -> None:
        """Note the verdicts as statuses."""
        rows, new = self.rows, slice(self.rows.num_old, None)
        rows.statuses[new] = np.where(~self.last[new], SUPERSEDED, np.where(rows.gone[new], GONE, KEPT))
        for row, verdict in verdicts.items():
            rows.statuses[row] = DROPPED
            rows.partners[row] = verdict.partner


def _decide(config: Any, work: Work, state: _State, bands: list[Sorted]) -> dict[int, Duplicate]:
    """Return the verdicts on the new rows that are dropped."""
    rows, near = state.rows, config.near
    out: dict[int, Duplicate] = {}
    if config.overlap.action == "drop":
        out = {row: Duplicate("contaminated", -1, share, item) for row, (share, item) in rows.overlaps.items() if state.last[row] and not rows.gone[row]}
    order = state.order()
    order = order[~np.isin(order, list(out))]
    if config.url != "off":
        out.update(_by_url(config.url, state, order))
        order = order[~np.isin(order, list(out))]
    contenders = _contenders(config.exact, state, order)
    if near is None or not len(order):
        return out | decide(contenders)
    runs = find_runs(_keys(near, rows, order), rows.has_shingles[order] & ~_seen_before(contenders), bands)
    with ShingleSets(near, work, rows) as sets:
        sets.load(_likely(near, state, order, runs))
        num_perm = near.num_bands * near.num_rows
        search = Near(
            threshold=near.threshold,
            runs=runs,
            margin=lambda row: WIDE_MARGIN if rows.wide[row] else AGREEMENT_MARGIN,
            alive=lambda row: bool(state.live[row]),
            signatures=lambda wanted: rows.signatures(wanted, num_perm),
            similarity=sets.similarity,
        )
        return out | decide(contenders, near=search)


def _by_url(which: str, state: _State, order: np.ndarray) -> dict[int, Duplicate]:
    """Of the documents of one URL keep the newest, or the first in order; what stands in the output was seen first."""
    rows = state.rows
    everyone = np.concatenate((np.flatnonzero(state.live), order))
    everyone = everyone[rows.url_hashes[everyone] != 0]
    best: dict[int, int] = {}
    for row in everyone.tolist():
        key = int(rows.url_hashes[row])
        if key not in best or (which == "newest" and rows.times[row] > rows.times[best[key]]):
            best[key] = row
    return {row: Duplicate("url", winner, 1.0) for row in everyone.tolist() if (winner := best[int(rows.url_hashes[row])]) != row and row >= rows.num_old}


def _contenders(exact: Any, state: _State, order: np.ndarray) -> Contenders:
    """Number the texts that occur more than once among contenders and what stands in the output."""
    rows = state.rows
    texts = np.full(len(order), -1, np.int64)
    old_texts: dict[int, tuple[int, int]] = {}
    if exact is not False and len(order):
        old = np.flatnonzero(state.live)
        everyone = np.concatenate((old, order))
        columns = [rows.text_hashes[everyone, 1], rows.text_hashes[everyone, 0]]
        if exact == "raw":
            columns.insert(0, rows.content_hashes[everyone])
        by = np.lexsort(columns)
        opens = np.ones(len(by), bool)
        opens[1:] = np.logical_or.reduce([c[by][1:] != c[by][:-1] for c in columns])
        numbers = np.empty(len(by), np.int64)
        numbers[by] = np.cumsum(opens) - 1
        repeated = np.bincount(numbers)[numbers] > 1
        texts[:] = np.where(repeated, numbers, -1)[len(old) :]
        for row, number in zip(old[repeated[: len(old)]].tolist(), numbers[: len(old)][repeated[: len(old)]].tolist(), strict=True):
            old_texts.setdefault(number, (row, int(rows.content_hashes[row])))
    return Contenders(rows=order, texts=texts, contents=rows.content_hashes[order], old_texts=old_texts)


def _seen_before(contenders: Contenders) -> np.ndarray:
    """(D,) whether an earlier document has the same text: such a one is dropped without comparison."""
    texts = contenders.texts
    out = np.isin(texts, list(contenders.old_texts))
    where = np.flatnonzero(texts >= 0)
    out[np.delete(where, np.unique(texts[where], return_index=True)[1])] = True
    return out


def _keys(near: Any, rows: Rows, wanted: np.ndarray) -> np.ndarray:
    """Compute the band keys of rows, (num_bands, n), with few signatures in memory at a time."""
    out = np.empty((near.num_bands, len(wanted)), np.uint32)
    for start in range(0, len(wanted), CHUNK_ROWS):
        part = rows.signatures(wanted[start : start + CHUNK_ROWS], near.num_bands * near.num_rows)
        out[:, start : start + CHUNK_ROWS] = band_keys(part, num_bands=near.num_bands, num_rows=near.num_rows, probe_rows=near.probe_rows)
    return out


def _likely(near: Any, state: _State, order: np.ndarray, runs: Any) -> np.ndarray:
    """Find the rows whose texts will be compared, nearly all: a neighbour in some run has a signature alike."""
    rows, num_perm = state.rows, near.num_bands * near.num_rows
    flagged = np.zeros(len(rows), bool)
    for docs, others, are_old in runs.neighbours():
        a, b = order[docs], others if are_old else order[others]
        pairs = np.unique(a << 32 | b) if len(a) else np.empty(0, np.int64)
        a, b = pairs >> 32, pairs & 0xFFFFFFFF
        if are_old:
            a, b = a[state.live[b]], b[state.live[b]]
        for start in range(0, len(a), CHUNK_ROWS):
            x, y = a[start : start + CHUNK_ROWS], b[start : start + CHUNK_ROWS]
            alike = (rows.signatures(x, num_perm) == rows.signatures(y, num_perm)).mean(axis=1) >= near.threshold - np.where(rows.wide[x], WIDE_MARGIN, AGREEMENT_MARGIN)
            flagged[x[alike]] = flagged[y[alike]] = True
    return np.flatnonzero(flagged)


def _sorted_bands(near: Any, rows: Rows) -> tuple[np.ndarray, np.ndarray] | None:
    """Sort the band keys of the documents that stay."""
    if near is None:
        return None
    new = np.arange(rows.num_old, len(rows))
    kept = new[(rows.statuses[new] == KEPT) & rows.has_shingles[new]]
    return sort_bands(_keys(near, rows, kept), kept - rows.num_old)


def _parts(config: Any, sources: list[Source], state: _State, verdicts: dict[int, Duplicate]) -> list[Part]:
    """Cut the decisions into one part per source, and one for what is gone."""
    rows = state.rows
    first = len(rows.names) - len(sources)
    bounds = np.searchsorted(rows.sources, np.arange(first, len(rows.names) + 1))
    parts = [_part(config, source, np.arange(bounds[k], bounds[k + 1]), state, verdicts) for k, source in enumerate(sources)]
    out = state.last & state.was_kept & np.isin(rows.statuses, (DROPPED, GONE))
    if out.any():
        parts.append(Part(name="gone", gone=sorted(rows.id_of(row) for row in np.flatnonzero(out).tolist())))
    return parts


def _part(config: Any, source: Source, own: np.ndarray, state: _State, verdicts: dict[int, Duplicate]) -> Part:
    rows, again = state.rows, source.name.startswith(AGAIN)
    unit: DocUnit = source.unit
    kept = own[rows.statuses[own] == KEPT].tolist()
    lost = [(row, verdicts[row]) for row in own[rows.statuses[own] == DROPPED].tolist()]
    thresholds = {"near": config.near.threshold if config.near else 1.0, "contaminated": config.overlap.min_share}
    return Part(
        name=source.name,
        unit=unit,
        first=int(own[0]) if len(own) else 0,
        rows=rows.rows[kept].tolist(),
        numbers=kept,
        ops=["changed" if state.was_kept[row] else "new" for row in kept],
        dropped=[
            Dropped(
                row=int(rows.rows[row]),
                rule=why.rule,
                similarity=why.similarity,
                threshold=thresholds.get(why.rule, 1.0),
                partner_id=why.item or rows.id_of(why.partner),
            )
            for row, why in lost
        ],
        read=0 if again else len(kept) + len(lost),
        superseded=int((rows.statuses[own] == SUPERSEDED).sum()),
        again=again,
    )
