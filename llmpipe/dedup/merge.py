"""Bring new documents, what is remembered of old ones, and candidates together; decide; and hand out what to write.

`merge(config, work, sources)` runs in one process between the two parallel phases. It also sees to growth:

- The later row of an id supersedes the earlier; `gone` takes the id out.
- A representative stays until its id changes or goes. Then the documents that were dropped for it contend again, each in
  the place of its first sight, before all that is new: so their cluster elects another.
- An id that was in the output and is dropped now, or gone, is written as `gone`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any

import numpy as np

from llmpipe.data.docs import DocUnit
from llmpipe.dedup.candidates import Runs, Sorted, find_runs, sort_bands
from llmpipe.dedup.decide import Contenders, Duplicate, Near, decide
from llmpipe.dedup.index import AGAIN, DROPPED, GONE, KEPT, SUPERSEDED, Rows, Source, locate, new_rows, old_rows, write_generation
from llmpipe.dedup.minhash import band_keys
from llmpipe.dedup.verify import ShingleSets
from llmpipe.dedup.write import Dropped, Part
from llmpipe.work import Work


def contending_again(work: Work) -> list[Source]:
    """Find the documents that were dropped for one which the new input changes or takes out."""
    if work.previous is None:
        return []
    old, _ = old_rows(work)
    pending = {bytes.fromhex(i) for unit in work.doc_units() for i in unit.read(["id"]).column("id").to_pylist()}
    last = {i: row for row, i in enumerate(old.ids)}
    lost = {i for i in pending if i in last and old.statuses[last[i]] == KEPT}
    rows: dict[str, list[int]] = defaultdict(list)
    for i, row in sorted(last.items(), key=lambda item: item[1]):
        if i not in pending and old.statuses[row] == DROPPED and old.partners[row] in lost:
            rows[old.sources[row].removeprefix(AGAIN)].append(old.rows[row])
    return [Source(AGAIN + name, locate(work, name), sorted(own)) for name, own in sorted(rows.items())]


def merge(config: Any, work: Work, sources: list[Source]) -> list[Part]:
    """Decide on all pending documents, write this generation's index, and return the parts to write."""
    old, bands = old_rows(work)
    both = _Both(old, new_rows(work, sources))
    verdicts = _decide(config, work, both, bands)
    both.settle(verdicts)
    write_generation(work, both.new, _sorted_bands(config.near, both.new))
    return _parts(config, sources, both, verdicts)


class _Both:
    """Old and new rows side by side, and which of them count. Old rows are numbered -1 - row where both may stand."""

    def __init__(self, old: Rows, new: Rows) -> None:
        self.old, self.new = old, new
        self.last_old: dict[bytes, int] = {i: row for row, i in enumerate(old.ids)}
        self.last_new: dict[bytes, int] = {i: row for row, i in enumerate(new.ids)}

    @cached_property
    def contenders(self) -> list[int]:
        """New rows to decide on, in order of the first sight of their id."""
        first_old: dict[bytes, int] = {}
        for row, i in enumerate(self.old.ids):
            if i in self.last_new:
                first_old.setdefault(i, row)
        first_new: dict[bytes, int] = {}
        for row, i in enumerate(self.new.ids):
            first_new.setdefault(i, row)
        alive = [row for i, row in self.last_new.items() if self.new.ops[row] != GONE]
        return sorted(alive, key=lambda row: (0, first_old[i]) if (i := self.new.ids[row]) in first_old else (1, first_new[i]))

    def is_live(self, row: int) -> bool:
        """Whether an old row is in the output and stays there."""
        i = self.old.ids[row]
        return self.last_old[i] == row and self.old.statuses[row] == KEPT and i not in self.last_new

    def was_kept(self, i: bytes) -> bool:
        return i in self.last_old and self.old.statuses[self.last_old[i]] == KEPT

    def id_of(self, number: int) -> bytes:
        return self.old.ids[-1 - number] if number < 0 else self.new.ids[number]

    def settle(self, verdicts: dict[int, Duplicate]) -> None:
        """Note the verdicts, by new row, as statuses."""
        new = self.new
        new.statuses = [SUPERSEDED if self.last_new[i] != row else GONE if new.ops[row] == GONE else KEPT for row, i in enumerate(new.ids)]
        new.partners, new.similarities = [None] * len(new), [None] * len(new)
        for row, verdict in verdicts.items():
            new.statuses[row] = DROPPED
            new.partners[row] = self.id_of(verdict.partner)
            new.similarities[row] = verdict.similarity


def _decide(config: Any, work: Work, both: _Both, bands: list[Sorted]) -> dict[int, Duplicate]:
    """Return the verdicts on the new rows that are dropped, with partners as new rows or -1 - old row."""
    old, new, order, near = both.old, both.new, both.contenders, config.near
    texts = {new.text_hashes[row] for row in order} if config.exact else set()
    old_texts: dict[bytes, tuple[int, bytes]] = {}
    for row, text in enumerate(old.text_hashes):
        if text in texts and both.is_live(row):
            old_texts.setdefault(text, (row, old.content_hashes[row]))
    contenders = Contenders([new.text_hashes[r] for r in order], [new.content_hashes[r] for r in order])
    if near is None or not order:
        return _by_row(order, decide(contenders, exact=config.exact, old_texts=old_texts))
    num_perm = near.num_bands * near.num_rows
    rows = np.array(order, np.int64)
    signatures = new.signatures(rows, num_perm)
    keys = band_keys(signatures, num_bands=near.num_bands, num_rows=near.num_rows)
    runs = find_runs(keys, new.has_shingles[rows], bands)
    with ShingleSets(near, work.output / "state") as sets:
        _load_sets(sets, work, both, runs)
        search = Near(
            threshold=near.threshold,
            runs=runs,
            signatures=signatures,
            old_alive=both.is_live,
            old_signatures=lambda r: old.signatures(r, num_perm),
            similarity=sets.similarity,
        )
        return _by_row(order, decide(contenders, exact=config.exact, old_texts=old_texts, near=search))


def _by_row(order: list[int], found: list[Duplicate | None]) -> dict[int, Duplicate]:
    """Number contenders by their rows."""
    out = {}
    for row, verdict in zip(order, found, strict=True):
        if verdict is not None:
            partner = verdict.partner if verdict.partner < 0 else order[verdict.partner]
            out[row] = Duplicate(verdict.rule, partner, verdict.similarity)
    return out


def _load_sets(sets: ShingleSets, work: Work, both: _Both, runs: Runs) -> None:
    """Read the texts of all candidates once, row group by row group."""
    wanted: dict[str, dict[int, int]] = defaultdict(dict)
    for i in runs.members().tolist():
        row = both.contenders[i]
        wanted[both.new.sources[row].removeprefix(AGAIN)][both.new.rows[row]] = i
    units = {name: locate(work, name) for name in wanted}
    for done, (name, numbers) in enumerate(sorted(wanted.items())):
        sets.add_unit(units[name], numbers)
        work.progress.update(done + 1, len(wanted), phase="compare")
    old: dict[str, dict[int, int]] = defaultdict(dict)
    for row in np.unique(runs.old).tolist():
        if both.is_live(row):
            old[both.old.sources[row].removeprefix(AGAIN)][both.old.rows[row]] = -1 - row
    for name, numbers in sorted(old.items()):
        sets.add_unit(locate(work, name), numbers)


def _sorted_bands(near: Any, new: Rows) -> tuple[np.ndarray, np.ndarray] | None:
    """Sort the band keys of the documents that stay."""
    if near is None:
        return None
    kept = np.array([row for row, status in enumerate(new.statuses) if status == KEPT and new.has_shingles[row]], np.int64)
    keys = band_keys(new.signatures(kept, near.num_bands * near.num_rows), num_bands=near.num_bands, num_rows=near.num_rows)
    return sort_bands(keys, kept)


def _parts(config: Any, sources: list[Source], both: _Both, verdicts: dict[int, Duplicate]) -> list[Part]:
    """Cut the decisions into one part per source, and one for what is gone."""
    new = both.new
    by_source: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(new.sources):
        by_source[name].append(row)
    parts = [_part(config, source, by_source[source.name], both, verdicts) for source in sources]
    gone = [i for i, row in both.last_new.items() if both.was_kept(i) and new.statuses[row] in (DROPPED, GONE)]
    if gone:
        parts.append(Part(name="gone", gone=sorted(i.hex() for i in gone)))
    return parts


def _part(config: Any, source: Source, rows: list[int], both: _Both, verdicts: dict[int, Duplicate]) -> Part:
    new, again = both.new, source.name.startswith(AGAIN)
    unit: DocUnit = source.unit
    kept = [row for row in rows if new.statuses[row] == KEPT]
    lost = [(row, verdicts[row]) for row in rows if new.statuses[row] == DROPPED]
    return Part(
        name=source.name,
        unit=unit,
        rows=[new.rows[row] for row in kept],
        ops=["changed" if both.was_kept(new.ids[row]) else "new" for row in kept],
        dropped=[
            Dropped(
                row=new.rows[row],
                rule=why.rule,
                similarity=why.similarity,
                threshold=config.near.threshold if why.rule == "near" else 1.0,
                partner_id=both.id_of(why.partner).hex(),
            )
            for row, why in lost
        ],
        read=0 if again else len(kept) + len(lost),
        superseded=sum(new.statuses[row] == SUPERSEDED for row in rows),
        again=again,
    )
