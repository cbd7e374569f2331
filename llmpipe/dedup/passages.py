"""Find what is to be cut out of the documents that stay: lines that many share, and long passages that occurred before.

    with find_passages(config, work, rows, parts) as passages:
        cuts = passages.cuts(part, texts, urls, config)          # in each worker that writes a part

Workers leave sorted runs below `state/passages`, which this process merges by ranges of hashes; a kill starts this over,
and the folder goes at the end. Index: lines-GGGGG.npy (16 bytes a line), anchors-GGGGG.npy (16 bytes per 13 words).
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmpipe.data.docs import DocUnit
from llmpipe.dedup.index import AGAIN, KEPT, Rows, locate, read_npy
from llmpipe.dedup.lines import count_lines, host_of, lines_of, spans_to_cut
from llmpipe.dedup.memory import estimate
from llmpipe.dedup.runs import Columns, merged, write_run
from llmpipe.dedup.substrings import repeated_anchors, repeats, windows_of
from llmpipe.dedup.write import Part
from llmpipe.executor import map_units
from llmpipe.work import Work

Spans = list[tuple[int, int, str, int]]
"""(first character, one past the last, rule, row of the document with the first copy or -1)."""


@dataclass(frozen=True, slots=True)
class Passages:
    """Where the tables lie that say what to cut; small enough to be sent to workers."""

    folder: Path

    def id_of(self, row: int) -> str | None:
        """Return the id of a row, -1 for none."""
        return None if row < 0 else np.array(read_npy(self.folder / "ids.npy")[row]).tobytes().hex()

    def cuts(self, part: Part, texts: Sequence[str], urls: Sequence[str | None], config: Any) -> list[Spans]:
        """List for each document that stays what is to be cut out of it, ascending."""
        out: list[Spans] = [[] for _ in texts]
        if config.lines is not None:
            lines = lines_of(texts, _hosts(urls, config), config.lines)
            cut = spans_to_cut(lines, part.numbers, read_npy(self.folder / "cut-lines.npy"), keep_first=config.lines.keep == "first")
            for doc, start, end in zip(lines.docs[cut].tolist(), lines.starts[cut].tolist(), lines.ends[cut].tolist(), strict=True):
                out[doc].append((start, end, config.lines.unit, -1))
        path = self.folder / f"repeats-{part.name}.bin"
        if config.substrings is not None and path.is_file():
            found = np.fromfile(path, np.uint64).reshape(-1, 2)
            for doc, spans in enumerate(_repeated_spans(texts, part.numbers, found[np.argsort(found[:, 0])], config.substrings.min_tokens)):
                out[doc] = sorted(out[doc] + spans)
        return out


@contextmanager
def find_passages(config: Any, work: Work, rows: Rows, parts: list[Part]) -> Iterator[Passages | None]:
    """Look through all documents that stay; yield None where nothing is to be looked for."""
    if config.lines is None and config.substrings is None:
        yield None
        return
    folder = work.output / "state" / "passages"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    staying = [part for part in parts if part.unit is not None and part.rows]
    size = estimate(config, work).partition_bytes
    _map(work, partial(write_runs, config=config, folder=folder), staying, "passages")
    if config.lines is not None:
        _cut_lines(config, work, folder, staying, size)
    if config.substrings is not None:
        _cut_substrings(config, work, rows, folder, staying, size)
    yield Passages(folder)
    shutil.rmtree(folder)


def _map(work: Work, function: Any, units: Sequence[Any], phase: str) -> None:
    for done, _ in enumerate(map_units(function, units, workers=work.workers, pool=work.pool)):
        work.progress.update(done + 1, len(units), phase=phase)


def _hosts(urls: Sequence[str | None], config: Any) -> list[int]:
    return [host_of(u) for u in urls] if config.lines.scope == "host" else []


def read_kept(unit: DocUnit, rows: list[int]) -> pa.Table:
    return unit.read(["text", "url"]).take(pa.array(rows, pa.int64()))


def write_runs(part: Part, *, config: Any, folder: Path) -> None:
    """Write a part's lines and anchors as sorted runs."""
    table = read_kept(part.unit, part.rows)
    texts, numbers = table.column("text").to_pylist(), np.array(part.numbers, np.uint64)
    if config.lines is not None:
        lines = lines_of(texts, _hosts(table.column("url").to_pylist(), config), config.lines)
        own = numbers[lines.docs] if len(lines.docs) else np.empty(0, np.uint64)
        order = np.lexsort((own, lines.hashes))
        pairs = np.stack([lines.hashes[order], own[order]])
        once = np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)) if pairs.shape[1] else np.empty(0, bool)
        write_run(folder / f"lines-{part.name}.npy", pairs[:, once])
    if config.substrings is not None:
        parts = [np.empty((2, 0), np.uint64)]
        for start, windows in windows_of(texts, config.substrings.min_tokens):
            at, hashes = windows.anchors
            parts.append(np.stack([hashes, numbers[start + windows.tokens.docs[at]]]))
        write_run(folder / f"anchors-{part.name}.npy", np.concatenate(parts, axis=1))


def _cut_lines(config: Any, work: Work, folder: Path, staying: list[Part], size: int) -> None:
    counts, cuts = Columns(folder, "counts", 2), Columns(folder, "cuts", 2)
    old = [work.output / "index" / f"lines-{g:05d}.npy" for g in range(work.generation)]
    runs = [folder / f"lines-{part.name}.npy" for part in staying]
    for counted, cut in count_lines(runs, [p for p in old if p.is_file()], min_docs=config.lines.min_docs, partition_bytes=size):
        counts.add(counted)
        cuts.add(cut)
    cuts.save(folder / "cut-lines.npy")
    _publish(work, counts, folder, "lines")


def _publish(work: Work, columns: Columns, folder: Path, name: str) -> None:
    target = work.output / "index" / f"{name}-{work.generation:05d}.npy"
    columns.save(folder / target.name)
    target.parent.mkdir(exist_ok=True)
    (folder / target.name).rename(target)
    work.add_file(target, rows=columns.size)


def _cut_substrings(config: Any, work: Work, rows: Rows, folder: Path, staying: list[Part], size: int) -> None:
    """Find repeated anchors, sort the windows around them, and leave each part its repeats."""
    runs = [folder / f"anchors-{part.name}.npy" for part in staying]
    old = [p for g in range(work.generation) if (p := work.output / "index" / f"anchors-{g:05d}.npy").is_file()]
    anchors, old_rows = Columns(folder, "repeated", 1), set()
    for hashes, from_old in repeated_anchors(runs, old, partition_bytes=size):
        anchors.add(hashes[None])
        old_rows.update(np.unique(from_old).tolist())
    anchors.save(folder / "repeated.npy")
    np.save(folder / "ids.npy", rows.ids, allow_pickle=False)
    jobs = [(part.name, part.unit, part.rows, part.numbers) for part in staying]
    jobs = _old_jobs(work, rows, old_rows) + jobs
    _map(work, partial(write_windows, folder=folder, min_tokens=config.substrings.min_tokens), jobs, "windows")
    bounds = np.array([part.first for part in staying], np.uint64)
    for found in repeats([folder / f"windows-{job[0]}.npy" for job in jobs], partition_bytes=size):
        owners = found[0] >> np.uint64(32)
        found, owners = found[:, owners >= rows.num_old], owners[owners >= rows.num_old]
        which = np.searchsorted(bounds, owners, side="right") - 1
        order = np.argsort(which, kind="stable")
        for number, own in zip(*_split(which[order], found[:, order]), strict=True):
            with open(folder / f"repeats-{staying[number].name}.bin", "ab") as f:
                f.write(np.ascontiguousarray(own.T).tobytes())
    index = Columns(folder, "anchors", 2)
    for part in merged(runs, partition_bytes=size):
        index.add(part)
    _publish(work, index, folder, "anchors")


def _split(keys: np.ndarray, records: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Cut records, sorted by key, into one array per key."""
    unique, starts = np.unique(keys, return_index=True)
    return unique.tolist(), np.split(records, starts[1:], axis=1) if len(unique) else []


def _old_jobs(work: Work, rows: Rows, wanted: set[int]) -> list[tuple[str, DocUnit, list[int], list[int]]]:
    """Read older documents again that share an anchor with a new one and stand in the output still."""
    jobs: dict[str, list[int]] = defaultdict(list)
    for row in sorted(wanted):
        if rows.statuses[row] == KEPT:
            jobs[rows.name_of(row).removeprefix(AGAIN)].append(row)
    return [(f"old-{name}", locate(work, name), [int(rows.rows[r]) for r in own], own) for name, own in jobs.items()]


def write_windows(job: tuple[str, DocUnit, list[int], list[int]], *, folder: Path, min_tokens: int) -> None:
    """Write the windows around repeated anchors as a sorted run: two hashes and the place."""
    name, unit, rows, numbers = job
    repeated = read_npy(folder / "repeated.npy")[0]
    own = np.array(numbers, np.uint64)
    parts = [np.empty((3, 0), np.uint64)]
    for start, windows in windows_of(read_kept(unit, rows).column("text").to_pylist(), min_tokens):
        at, hashes = windows.anchors
        found = np.searchsorted(repeated, hashes)
        hit = found < len(repeated)
        hit[hit] = repeated[found[hit]] == hashes[hit]
        where = windows.around(at[hit])
        if len(where):
            docs = windows.tokens.docs[where]
            first = np.searchsorted(windows.tokens.docs, docs)  # tokens are counted in their document
            parts.append(np.stack([*windows.hashes(where), own[start + docs] << np.uint64(32) | (where - first).astype(np.uint64)]))
    write_run(folder / f"windows-{name}.npy", np.concatenate(parts, axis=1))


def _repeated_spans(texts: Sequence[str], numbers: Sequence[int], found: np.ndarray, min_tokens: int) -> Iterator[Spans]:
    """Turn repeated windows, (m, 2) sorted by place, into spans of characters, each as long as it goes on in one source."""
    owners = (found[:, 0] >> np.uint64(32)).astype(np.int64)
    for start, windows in windows_of(texts, min_tokens):
        tokens = windows.tokens
        for doc in range(start, start + (int(tokens.docs[-1]) + 1 if len(tokens.docs) else 0)):
            low, high = np.searchsorted(owners, [numbers[doc], numbers[doc] + 1])
            base = int(np.searchsorted(tokens.docs, doc - start))
            spans: Spans = []
            for place, source in found[low:high].tolist():
                at = base + (place & 0xFFFFFFFF)
                begin, end, partner = int(tokens.starts[at]), int(tokens.ends[windows.ends[at] - 1]), source >> 32
                if spans and begin <= spans[-1][1] and spans[-1][3] == partner:
                    spans[-1] = (spans[-1][0], end, "substring", partner)
                else:
                    spans.append((begin, end, "substring", partner))
            yield spans
