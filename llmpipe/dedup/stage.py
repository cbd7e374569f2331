"""Drop exact and near duplicates; the first seen of each group stays.

    llmpipe dedup --input cleaned --output unique --set near.threshold=0.8

Reads a directory of documents. Writes the documents that stay, `dropped/` (each with the id of its partner and their
similarity) and `index/`, by which later input is compared with all earlier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmpipe.work import Counts, UnitOutput, Work

if TYPE_CHECKING:
    from llmpipe.dedup.index import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class MinHashConfig:
    threshold: float = 0.7
    """Drop a document that shares at least this part of its shingles (Jaccard, counted exactly) with one that stays."""
    num_bands: int = 14
    num_rows: int = 8
    """Two documents are compared when all rows of any band of their signatures agree: with 14 bands of 8 rows at
    similarity 0.7 in 56 %, at 0.8 in 92 %, at 0.9 in 99.96 % of cases."""
    ngram: int = 5
    """Words in a shingle."""
    char_ngram: int = 8
    """Characters in a shingle where the script puts no spaces between words (Chinese, Japanese, Thai)."""
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: {self.threshold} is not above 0 and at most 1")
        for name in ("num_bands", "num_rows", "ngram", "char_ngram"):
            if not 1 <= getattr(self, name) <= 1024:
                raise ValueError(f"{name}: {getattr(self, name)} is not between 1 and 1024")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: {self.seed} is not between 0 and 2^32 - 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    exact: bool = True
    """Drop documents with the same words as an earlier one; case, width, punctuation and spacing aside."""
    near: MinHashConfig | None = field(default_factory=MinHashConfig)
    """Near-duplicate settings; null turns them off."""

    def __post_init__(self) -> None:
        if not self.exact and self.near is None:
            raise ValueError("exact is false and near is null: there is nothing to do")


def run(config: Config, work: Work) -> Counts:
    """Sign all pending documents in parallel, decide in order, write in parallel."""
    from llmpipe.dedup.index import Source
    from llmpipe.dedup.merge import contending_again, merge
    from llmpipe.dedup.write import write_part

    sources = [*contending_again(work), *(Source(unit.name, unit) for unit in work.doc_units())]
    work.map(sign_source, sources, phase="sig", shared=config)
    results = work.map(write_part, merge(config, work, sources), phase="part")
    return sum((r.counts for r in results), Counts())


def sign_source(source: Source, out: UnitOutput, config: Config) -> Counts:
    """Hash one row group: ids and text hashes, and signatures unless near-duplicates are off."""
    import numpy as np
    import pyarrow as pa

    from llmpipe.data.ids import content_hash
    from llmpipe.dedup.index import ROWS
    from llmpipe.dedup.minhash import signatures
    from llmpipe.dedup.shingles import prepare, shingles, text_hashes
    from llmpipe.text.block import blocks

    table = source.read(["id", "text", "content_hash", "op"])
    texts = table.column("text").to_pylist()
    near = config.near
    hashes = np.zeros((len(texts), 2), np.uint64)
    counts = np.zeros(len(texts), np.uint32)
    sigs = np.empty((len(texts), near.num_bands * near.num_rows if near else 0), np.uint32)
    for start, block in blocks([prepare(t) for t in texts], inner_dots=False):
        own = slice(start, start + block.num_docs)
        hashes[own] = text_hashes(block)
        if near:
            found, docs = shingles(block, block.tables.folded, words=near.ngram, characters=near.char_ngram)
            sigs[own] = signatures(found, docs, block.num_docs, num_perm=sigs.shape[1], seed=near.seed)
            counts[own] = np.bincount(docs, minlength=block.num_docs)
    content = [
        bytes.fromhex(given or content_hash(text)) for given, text in zip(table.column("content_hash").to_pylist(), texts, strict=True)
    ]
    # a text without words (only symbols) is the same as another only if all of it is
    keys = [row.tobytes() if row.any() else raw for row, raw in zip(hashes, content, strict=True)]
    ids = [bytes.fromhex(i) for i in table.column("id").to_pylist()]
    rows = range(len(texts)) if source.rows is None else source.rows
    columns = [
        ids,
        pa.array(rows, pa.int32()),
        pa.array(keys, pa.binary(16)),
        content,
        table.column("op").combine_chunks(),
        pa.array(counts),
    ]
    out.table("index", pa.table(columns, schema=ROWS))
    if near and len(texts):
        with out.path("index/{stem}.npy", rows=len(texts)) as tmp, open(tmp, "wb") as f:
            np.save(f, sigs, allow_pickle=False)
    return Counts()
