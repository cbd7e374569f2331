"""Find evaluation items in documents: 13 words in a row, or 20 characters where the script puts no spaces.

    overlaps = Overlaps(config)
    shares, items = overlaps.add(block, start)      # per document the best item and how much of it the document holds
    overlaps/sig-GGGGG-UUUUUU.parquet               # one row per document and item
    overlaps/items-GGGGG.parquet                    # one row per item, found or not

Case, width, punctuation and spacing don't count; digits and accents do. Fields of an item are taken one by one. n-grams
are compared by 64-bit hashes: of a million documents against a million n-grams one false match in 20,000 runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.data.docs import read_docs
from llmpipe.data.files import atomic_path
from llmpipe.data.rows import read_rows
from llmpipe.dedup.shingles import prepare, shingles
from llmpipe.text.block import Block, blocks
from llmpipe.work import Counts, Work

PAIRS = pa.schema([("id", pa.string()), ("item", pa.string()), ("ngrams", pa.int64()), ("share", pa.float64())])
ITEMS = pa.schema(
    [
        ("item", pa.string()),  # FILE#ROW, rows from 1; or FILE#ID of a directory of documents
        ("ngrams", pa.int64()),  # that the item has; 0: too short to be looked for
        ("documents", pa.int64()),  # in which some of them were found
        ("best_share", pa.float64()),
        ("best_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    names: list[str]
    num_ngrams: np.ndarray
    """(I,) distinct n-grams of each item."""
    hashes: np.ndarray
    """(P,) uint64, sorted; pairs of an n-gram and an item that has it."""
    items: np.ndarray
    """(P,) int32."""


@cache
def evaluation(paths: tuple[Path, ...], ngram: int, char_ngram: int) -> Evaluation:
    """Read the sets once a process."""
    names, texts, owners = [], [], []
    for path in paths:
        for name, fields in _items(path):
            names.append(f"{path.name}#{name}")
            texts += fields
            owners += [len(names) - 1] * len(fields)
    parts = []
    own = np.array(owners, np.int64)
    for start, block in blocks([prepare(t) for t in texts], inner_dots=False):
        found, docs = _ngrams(block, ngram, char_ngram)
        parts.append(np.stack([found, own[start + docs].astype(np.uint64)], axis=1))
    pairs = np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    pairs = pairs[np.append(True, (pairs[1:] != pairs[:-1]).any(axis=1))] if len(pairs) else pairs
    items = pairs[:, 1].astype(np.int32)
    return Evaluation(names, np.bincount(items, minlength=len(names)), np.ascontiguousarray(pairs[:, 0]), items)


def _items(path: Path) -> Iterator[tuple[str, list[str]]]:
    if path.is_dir():
        for batch in read_docs(path, columns=["id", "text"]):
            for row in batch.to_pylist():
                yield row["id"], [row["text"]]
        return
    for number, row in enumerate(read_rows(path), 1):
        yield str(number), list(_strings(row))


def _strings(value: Any) -> Iterator[str]:
    """All texts in a row, however nested: choices, answers, the turns of a conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _ngrams(block: Block, ngram: int, char_ngram: int) -> tuple[np.ndarray, np.ndarray]:
    return shingles(block, block.tables.exact, words=ngram, characters=char_ngram, short=False)


class Overlaps:
    """Overlaps of a unit's documents with the evaluation sets."""

    def __init__(self, config: Any) -> None:
        self._overlap = config.overlap
        self._sets = evaluation(tuple(config.decontaminate), config.overlap.ngram, config.overlap.char_ngram)
        self._pairs: list[tuple[int, int, int]] = []

    def add(self, block: Block, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return for each document the largest share of an item that it holds, at least `min_share`, and the item's name."""
        shares, names = np.zeros(block.num_docs, np.float32), np.full(block.num_docs, None, object)
        sets = self._sets
        found, docs = _ngrams(block, self._overlap.ngram, self._overlap.char_ngram)
        left = np.searchsorted(sets.hashes, found, side="left")
        hit = left < len(sets.hashes)
        hit[hit] = sets.hashes[left[hit]] == found[hit]
        if not hit.any():
            return shares, names
        matched = np.unique(np.stack([docs[hit].astype(np.uint64), found[hit]], axis=1), axis=0)
        left, right = (np.searchsorted(sets.hashes, matched[:, 1], side=side) for side in ("left", "right"))
        lengths = right - left
        places = np.repeat(left - np.append(0, np.cumsum(lengths)[:-1]), lengths) + np.arange(lengths.sum())
        pairs, counts = np.unique(np.repeat(matched[:, 0].astype(np.int64), lengths) << 32 | sets.items[places], return_counts=True)
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            doc, item = pair >> 32, pair & 0xFFFFFFFF
            share = count / int(sets.num_ngrams[item])
            self._pairs.append((start + doc, item, count))
            if share > shares[doc] and share >= self._overlap.min_share:
                shares[doc], names[doc] = share, sets.names[item]
        return shares, names

    def table(self, ids: list[str]) -> pa.Table:
        sets = self._sets
        rows = [{"id": ids[doc], "item": sets.names[item], "ngrams": n, "share": n / int(sets.num_ngrams[item])} for doc, item, n in self._pairs]
        return pa.Table.from_pylist(rows, schema=PAIRS)


def write_report(config: Any, work: Work, num_units: int) -> Counts:
    """Write one row per evaluation item: in how many pending documents it was found, and in which the most of it."""
    sets = evaluation(tuple(config.decontaminate), config.overlap.ngram, config.overlap.char_ngram)
    documents: dict[str, int] = {}
    best: dict[str, tuple[float, str]] = {}
    for number in range(num_units):
        path = work.output / "overlaps" / f"sig-{work.generation:05d}-{number:06d}.parquet"
        if str(path.relative_to(work.output)) not in work.files:
            continue
        for row in pq.read_table(path).to_pylist():
            documents[row["item"]] = documents.get(row["item"], 0) + 1
            if row["share"] > best.get(row["item"], (0.0, ""))[0]:
                best[row["item"]] = (row["share"], row["id"])
    rows = [
        {"item": name, "ngrams": int(n), "documents": documents.get(name, 0), "best_share": best.get(name, (0.0, None))[0], "best_id": best.get(name, (0.0, None))[1]}
        for name, n in zip(sets.names, sets.num_ngrams.tolist(), strict=True)
    ]
    path = work.output / "overlaps" / f"items-{work.generation:05d}.parquet"
    with atomic_path(path) as tmp:
        pq.write_table(pa.Table.from_pylist(rows, schema=ITEMS), tmp, compression="zstd")
    work.add_file(path, rows=len(rows))
    extra = {"evaluation_items": len(rows), "evaluation_items_found": len(documents), "evaluation_items_too_short": int((sets.num_ngrams == 0).sum())}
    return Counts(extra={k: n for k, n in extra.items() if n})
