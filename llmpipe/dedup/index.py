"""The memory of dedup: what was seen, what was kept, and for whom the rest was dropped.

    index/sig-GGGGG-UUUUUU.npy        (n, 112) uint32 signatures of a unit
    index/sig-GGGGG-UUUUUU.parquet    id, text hash, op of each of its rows
    index/docs-GGGGG.parquet          status, partner and place of every row of a generation, in order
    index/keys-GGGGG.npy, index/rows-GGGGG.npy    band keys of its kept documents, sorted per band: (14, n) uint32 each

Append-only: a generation adds files and changes none. About 600 bytes a document. A row is numbered over all generations
in order; of the rows of one id the last counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.data.docs import DocUnit
from llmpipe.data.files import atomic_path
from llmpipe.data.manifest import Manifest
from llmpipe.dedup.candidates import Sorted
from llmpipe.errors import InputError
from llmpipe.work import Work

KEPT, DROPPED, GONE, SUPERSEDED = "kept", "dropped", "gone", "superseded"

ROWS = pa.schema(
    [
        ("id", pa.binary()),
        ("row", pa.int32()),  # in the row group of the input
        ("text_hash", pa.binary(16)),
        ("content_hash", pa.binary()),
        ("op", pa.string()),
        ("num_shingles", pa.uint32()),
    ]
)
DECISIONS = pa.schema(
    [
        ("status", pa.string()),
        ("partner_id", pa.binary()),  # for whom it was dropped
        ("similarity", pa.float32()),
        ("source", pa.dictionary(pa.int32(), pa.string())),  # Source.name: where the text is in the input
    ]
)


@dataclass(frozen=True, slots=True)
class Source:
    """A row group of the input, or those of its rows that contend again."""

    name: str
    """`<DocUnit.name>`, or `again-<DocUnit.name>`."""
    unit: DocUnit
    rows: list[int] | None = None

    def read(self, columns: list[str]) -> pa.Table:
        table = self.unit.read(columns)
        return table if self.rows is None else table.take(pa.array(self.rows, pa.int64()))


AGAIN = "again-"


@dataclass(slots=True)
class Rows:
    """Rows of one generation, or of all older ones, in order."""

    ids: list[bytes]
    text_hashes: list[bytes]
    content_hashes: list[bytes]
    sources: list[str]
    rows: list[int]
    ops: list[str]
    has_shingles: np.ndarray
    """(n,) bool."""
    sig_files: list[tuple[Path, int, int]]
    """(file, first row, rows after the last) of the signatures."""
    statuses: list[str]
    """Of older generations; empty for the new one."""
    partners: list[bytes | None]
    similarities: list[float | None]

    def __len__(self) -> int:
        return len(self.ids)

    def signatures(self, rows: np.ndarray, num_perm: int) -> np.ndarray:
        """Gather (len(rows), num_perm) uint32 from the files."""
        out = np.empty((len(rows), num_perm), np.uint32)
        for path, start, stop in self.sig_files:
            mine = np.flatnonzero((rows >= start) & (rows < stop))
            if len(mine):
                out[mine] = read_npy(path)[rows[mine] - start]
        return out


def read_npy(path: Path) -> np.ndarray:
    """Memory-map an array; a broken file is an `InputError`."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error})", hint=f"llmpipe verify {path.parent.parent}; --force makes the output anew"
        ) from None


def new_rows(work: Work, sources: list[Source]) -> Rows:
    """Read what the signature phase left for this generation's sources."""
    out = _empty()
    for number, source in enumerate(sources):
        _append(out, work.output / "index", f"sig-{work.generation:05d}-{number:06d}", source.name)
    return out


def old_rows(work: Work) -> tuple[Rows, list[Sorted]]:
    """Read all older generations, and map their sorted band keys."""
    out, bands = _empty(), []
    if work.previous is None:
        return out, bands
    folder = work.output / "index"
    for generation in range(work.generation):
        offset = len(out)
        decisions = _read(folder / f"docs-{generation:05d}.parquet")
        names = decisions.column("source").combine_chunks().dictionary.to_pylist()  # in order of appearance, one a source
        for number, name in enumerate(names):
            _append(out, folder, f"sig-{generation:05d}-{number:06d}", name)
        out.statuses += decisions.column("status").to_pylist()
        out.partners += decisions.column("partner_id").to_pylist()
        out.similarities += decisions.column("similarity").to_pylist()
        if _listed(work.previous, f"index/keys-{generation:05d}.npy"):
            bands.append(Sorted(read_npy(folder / f"keys-{generation:05d}.npy"), read_npy(folder / f"rows-{generation:05d}.npy"), offset))
    return out, bands


def _listed(manifest: Manifest, name: str) -> bool:
    return any(s.name == name for s in manifest.shards)


def _empty() -> Rows:
    return Rows([], [], [], [], [], [], np.empty(0, bool), [], [], [], [])


def _append(out: Rows, folder: Path, stem: str, source: str) -> None:
    table = _read(folder / f"{stem}.parquet")
    start = len(out)
    out.ids += table.column("id").to_pylist()
    out.text_hashes += table.column("text_hash").to_pylist()
    out.content_hashes += table.column("content_hash").to_pylist()
    out.ops += table.column("op").to_pylist()
    out.rows += table.column("row").to_pylist()
    out.sources += [source] * table.num_rows
    out.has_shingles = np.append(out.has_shingles, table.column("num_shingles").to_numpy() > 0)
    out.sig_files.append((folder / f"{stem}.npy", start, len(out)))


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path}: cannot be read ({error})", hint=f"llmpipe verify {path.parent.parent}; --force makes the output anew"
        ) from None


def write_generation(work: Work, new: Rows, bands: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Write a generation's decisions and sorted band keys."""
    folder = work.output / "index"
    table = pa.table(
        [
            pa.array(new.statuses, pa.string()),
            pa.array(new.partners, pa.binary()),
            pa.array(new.similarities, pa.float32()),
            pa.array(new.sources, pa.string()).dictionary_encode(),
        ],
        schema=DECISIONS,
    )
    path = folder / f"docs-{work.generation:05d}.parquet"
    with atomic_path(path) as tmp:
        pq.write_table(table, tmp, compression="zstd")
    work.add_file(path, rows=table.num_rows)
    if bands is not None:
        for name, array in (("keys", bands[0]), ("rows", bands[1])):
            path = folder / f"{name}-{work.generation:05d}.npy"
            with atomic_path(path) as tmp, open(tmp, "wb") as f:
                np.save(f, array, allow_pickle=False)
            work.add_file(path, rows=array.shape[1])


def locate(work: Work, name: str) -> DocUnit:
    """Find the row group of an input that a source's name stands for."""
    role, rest = name.removeprefix(AGAIN).split("-", 1)
    stem, group = rest.rsplit("-", 1)
    given = work.input(str(int(role)))
    if given is None:
        raise InputError(
            f"input {int(role)} is gone, but {work.output} was made with it", hint="name the same inputs in the same order as before"
        )
    return DocUnit(name.removeprefix(AGAIN), str(given.path / f"{stem}.parquet"), int(group), 0)
