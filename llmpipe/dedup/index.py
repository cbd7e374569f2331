"""The memory of dedup: what was seen, what was kept, and for whom the rest was dropped.

    index/sig-GGGGG-UUUUUU.npy        (n, 112) uint32 signatures of a unit
    index/sig-GGGGG-UUUUUU.parquet    id, hashes and op of each of its rows
    index/docs-GGGGG.parquet          status, partner and place of every row of a generation, in order
    index/keys-GGGGG.npy, index/rows-GGGGG.npy    band keys of its kept documents, sorted per band: (14, n) uint32 each

Append-only: a generation adds files and changes none. At most 650 bytes a document (docs/dedup.md has the sum). A row is
numbered over all generations in order; of the rows of one id the last counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

KEPT, DROPPED, GONE, SUPERSEDED = range(4)
MAX_MAPPED_ROWS = 8_192
"""Rows of signatures touched before their files are unmapped, so that they don't stay in memory: 4 MB."""

ROWS = pa.schema(
    [
        ("id", pa.binary(16)),
        ("row", pa.int32()),  # in the row group of the input
        ("text_hash", pa.binary(16)),
        ("content_hash", pa.binary(8)),
        ("url_hash", pa.binary(8)),  # these three only where the config asks for them
        ("time", pa.int64()),
        ("length", pa.uint32()),
        ("rank", pa.uint16()),  # of its source, in the order of the config
        ("gone", pa.bool_()),
        ("wide", pa.bool_()),  # in a script without spaces
        ("num_shingles", pa.uint32()),
        ("overlap", pa.float32()),  # with an evaluation set, as a share of the evaluation item
        ("overlap_item", pa.string()),
    ]
)
DECISIONS = pa.schema(
    [
        ("status", pa.uint8()),
        ("partner", pa.int64()),  # the row for which it was dropped
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
    """Rows of all generations in order, about 70 bytes each."""

    ids: np.ndarray
    """(n, 2) uint64: 128 bits."""
    text_hashes: np.ndarray
    """(n, 2) uint64."""
    content_hashes: np.ndarray
    """(n,) uint64."""
    url_hashes: np.ndarray
    """(n,) uint64, 0 for none."""
    times: np.ndarray
    lengths: np.ndarray
    ranks: np.ndarray
    gone: np.ndarray
    wide: np.ndarray
    has_shingles: np.ndarray
    rows: np.ndarray
    """(n,) int32 in the row group of the input."""
    sources: np.ndarray
    """(n,) int32 in `names`."""
    statuses: np.ndarray
    """(n,) uint8; of the new ones 0 until they are settled."""
    partners: np.ndarray
    """(n,) int64, -1 for none."""
    names: list[str]
    """Of sources, by generation and unit."""
    num_old: int
    overlaps: dict[int, tuple[float, str]] = field(default_factory=dict)
    """New rows that overlap with evaluation items."""
    sig_paths: list[Path] = field(default_factory=list)
    sig_starts: list[int] = field(default_factory=list)
    """First row of each signature file; their number more at the end."""
    _mapped: dict[int, np.ndarray] = field(default_factory=dict)
    _touched: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def id_of(self, row: int) -> str:
        return self.ids[row].tobytes().hex()

    def name_of(self, row: int) -> str:
        return self.names[self.sources[row]]

    def signatures(self, rows: np.ndarray, num_perm: int) -> np.ndarray:
        """Gather (len(rows), num_perm) uint32 from the files."""
        out = np.empty((len(rows), num_perm), np.uint32)
        files = np.searchsorted(self.sig_starts, rows, side="right") - 1
        for number in set(files.tolist()):
            mine = np.flatnonzero(files == number)
            if number not in self._mapped:
                self._mapped[number] = read_npy(self.sig_paths[number])
            out[mine] = self._mapped[number][rows[mine] - self.sig_starts[number]]
        self._touched += len(rows)
        if self._touched > MAX_MAPPED_ROWS:
            self._mapped.clear()
            self._touched = 0
        return out


def read_npy(path: Path) -> np.ndarray:
    """Memory-map an array; a broken file is an `InputError`."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})", hint=f"llmpipe verify {path.parent.parent}; --force makes the output anew") from None


def read_index(work: Work, sources: list[Source]) -> tuple[Rows, list[Sorted]]:
    """Read all older generations and what the signature phase left for the sources of this one; map sorted band keys."""
    folder = work.output / "index"
    tables, decisions, starts, paths, bands, names = [], [], [], [], [], []
    count = 0

    def append(stem: str) -> None:
        nonlocal count
        tables.append(_read(folder / f"{stem}.parquet"))
        starts.append(count)
        paths.append(folder / f"{stem}.npy")
        count += tables[-1].num_rows

    for generation in range(work.generation if work.previous else 0):
        offset = count
        decisions.append(_read(folder / f"docs-{generation:05d}.parquet"))
        own = decisions[-1].column("source").combine_chunks().dictionary.to_pylist()  # in order of appearance, one a source
        for number, _ in enumerate(own):
            append(f"sig-{generation:05d}-{number:06d}")
        names += own
        if work.previous and _listed(work.previous, f"index/keys-{generation:05d}.npy"):
            bands.append(Sorted(read_npy(folder / f"keys-{generation:05d}.npy"), read_npy(folder / f"rows-{generation:05d}.npy"), offset))
    num_old = count
    for number, source in enumerate(sources):
        append(f"sig-{work.generation:05d}-{number:06d}")
        names.append(source.name)
    sizes = [t.num_rows for t in tables]
    merged = pa.concat_tables(tables) if tables else ROWS.empty_table()
    status = np.zeros(count, np.uint8)
    partners = np.full(count, -1, np.int64)
    if num_old:
        settled = pa.concat_tables([d.select(["status", "partner"]) for d in decisions])
        status[:num_old] = settled.column("status").to_numpy()
        partners[:num_old] = settled.column("partner").to_numpy()
    overlaps = {}
    items = merged.column("overlap_item")
    if items.null_count < count:
        shares = merged.column("overlap")
        overlaps = {r: (shares[r].as_py(), items[r].as_py()) for r in np.flatnonzero(items.is_valid().to_numpy()).tolist() if r >= num_old}
    rows = Rows(
        ids=_words(merged, "id", 2),
        text_hashes=_words(merged, "text_hash", 2),
        content_hashes=_words(merged, "content_hash", 1)[:, 0],
        url_hashes=_words(merged, "url_hash", 1)[:, 0],
        times=merged.column("time").fill_null(0).to_numpy(),
        lengths=merged.column("length").fill_null(0).to_numpy(),
        ranks=merged.column("rank").fill_null(0).to_numpy(),
        gone=merged.column("gone").to_numpy(),
        wide=merged.column("wide").to_numpy(),
        has_shingles=merged.column("num_shingles").to_numpy() > 0,
        rows=merged.column("row").to_numpy(),
        sources=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        statuses=status,
        partners=partners,
        names=names,
        num_old=num_old,
        overlaps=overlaps,
        sig_paths=paths,
        sig_starts=starts,
    )
    return rows, bands


def _words(table: pa.Table, name: str, words: int) -> np.ndarray:
    """View a column of fixed-size binary as (n, words) uint64, zeros for nulls."""
    column = table.column(name)
    if column.null_count == len(column):
        return np.zeros((len(column), words), np.uint64)
    parts = [np.frombuffer(c.buffers()[1], np.uint64).reshape(-1, words)[c.offset : c.offset + len(c)] for c in column.chunks if len(c)]
    out = np.concatenate(parts)
    if column.null_count:
        out[column.is_null().to_numpy()] = 0
    return out


def _listed(manifest: Manifest, name: str) -> bool:
    return any(s.name == name for s in manifest.shards)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read ({error})", hint=f"llmpipe verify {path.parent.parent}; --force makes the output anew") from None


def write_generation(work: Work, rows: Rows, bands: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Write a generation's decisions and sorted band keys."""
    new = slice(rows.num_old, None)
    first = int(rows.sources[rows.num_old]) if len(rows) > rows.num_old else 0
    names = pa.DictionaryArray.from_arrays(pa.array(rows.sources[new] - first, pa.int32()), pa.array(rows.names[first:], pa.string()))
    table = pa.table([pa.array(rows.statuses[new]), pa.array(rows.partners[new]), names], schema=DECISIONS)
    path = work.output / "index" / f"docs-{work.generation:05d}.parquet"
    with atomic_path(path) as tmp:
        pq.write_table(table, tmp, compression="zstd")
    work.add_file(path, rows=table.num_rows)
    if bands is not None:
        for name, array in (("keys", bands[0]), ("rows", bands[1])):
            save_npy(work, f"index/{name}-{work.generation:05d}.npy", array, rows=array.shape[1])


def save_npy(work: Work, name: str, array: np.ndarray, *, rows: int) -> None:
    path = work.output / name
    with atomic_path(path) as tmp, open(tmp, "wb") as f:
        np.save(f, array, allow_pickle=False)
    work.add_file(path, rows=rows)


def locate(work: Work, name: str) -> DocUnit:
    """Find the row group of an input that a source's name stands for."""
    role, rest = name.removeprefix(AGAIN).split("-", 1)
    stem, group = rest.rsplit("-", 1)
    given = work.input(str(int(role)))
    if given is None:
        raise InputError(f"input {int(role)} is gone, but {work.output} was made with it", hint="name the same inputs in the same order as before")
    return DocUnit(name.removeprefix(AGAIN), str(given.path / f"{stem}.parquet"), int(group), 0)
