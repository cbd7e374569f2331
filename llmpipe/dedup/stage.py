"""Drop exact and near duplicates, repeated lines and passages, and what evaluation sets hold; the first seen of each group stays.

    llmpipe dedup --input cleaned --output unique --set near.threshold=0.8 --set 'decontaminate=[test.jsonl]'

Reads a directory of documents. Writes the documents that stay, `dropped/` (each with the id of its partner and their
similarity), `cut/` (what was cut out of documents that stay), `overlaps/` (evaluation items found) and `index/`, by which
later input is compared with all earlier. docs/dedup.md tells the rules; `settings.py` has the config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmpipe.dedup.settings import Config as Config
from llmpipe.work import Counts, UnitOutput, Work, release_memory

if TYPE_CHECKING:
    from llmpipe.dedup.index import Source


def run(config: Config, work: Work) -> Counts:
    """Sign all pending documents in parallel, decide in order, look for repeated passages, write in parallel."""
    from functools import partial

    from llmpipe.dedup.index import Source
    from llmpipe.dedup.memory import check_memory
    from llmpipe.dedup.merge import contending_again, merge
    from llmpipe.dedup.passages import find_passages
    from llmpipe.dedup.write import write_part

    check_memory(config, work)
    sources = [*contending_again(config, work), *(Source(unit.name, unit) for unit in work.doc_units())]
    signed = work.map(sign_source, sources, phase="sig", shared=config)
    rows, parts = merge(config, work, sources)
    release_memory()
    with find_passages(config, work, rows, parts) as passages:
        results = work.map(partial(write_part, passages=passages), parts, phase="part", shared=config)
    counts = sum((r.counts for r in (*signed, *results)), Counts())
    if config.decontaminate:
        from llmpipe.dedup.contaminate import write_report

        counts += write_report(config, work, len(sources))
    return counts


def plan(config: Config, work: Work) -> dict[str, Any]:
    """Estimate memory and disk before anything is read."""
    from llmpipe.dedup.memory import estimate

    return {"estimate": estimate(config, work).as_dict()}


def sign_source(source: Source, out: UnitOutput, config: Config) -> Counts:
    """Hash one row group: ids and text hashes, signatures unless near-duplicates are off, overlaps with evaluation sets."""
    import numpy as np
    import pyarrow as pa

    from llmpipe.data.ids import content_hash
    from llmpipe.dedup.index import ROWS
    from llmpipe.dedup.minhash import signatures
    from llmpipe.dedup.shingles import prepare, shingles, text_hashes, wide_docs
    from llmpipe.dedup.urls import url_hashes
    from llmpipe.text.block import blocks

    table = source.read(["id", "text", "content_hash", "op", *(["url", "meta", "fetched_at"] if config.url != "off" else []), *(["source"] if config.sources else [])])
    texts = table.column("text").to_pylist()
    near, size = config.near, len(texts)
    hashes = np.zeros((size, 2), np.uint64)
    counts = np.zeros(size, np.uint32)
    wide = np.zeros(size, bool)
    sigs = np.empty((size, near.num_bands * near.num_rows if near else 0), np.uint32)
    shares, items = np.zeros(size, np.float32), np.full(size, None, object)
    if config.decontaminate:
        from llmpipe.dedup.contaminate import Overlaps

        overlaps = Overlaps(config)
    for start, block in blocks([prepare(t) for t in texts], inner_dots=False):
        own = slice(start, start + block.num_docs)
        hashes[own] = text_hashes(block)
        if near:
            found, docs = shingles(block, block.tables.folded, words=near.ngram, characters=near.char_ngram)
            sigs[own] = signatures(found, docs, block.num_docs, num_perm=sigs.shape[1], seed=near.seed)
            counts[own] = np.bincount(docs, minlength=block.num_docs)
            wide[own] = wide_docs(block)
        if config.decontaminate:
            shares[own], items[own] = overlaps.add(block, start)
    content = [bytes.fromhex(given or content_hash(text)) for given, text in zip(table.column("content_hash").to_pylist(), texts, strict=True)]
    # a text without words (only symbols) is the same as another only if all of it is
    keys = [row.tobytes() if row.any() else raw for row, raw in zip(hashes, content, strict=True)]
    ids = table.column("id").to_pylist()
    urls, times = url_hashes(table) if config.url != "off" else (pa.nulls(size), pa.nulls(size))
    ranks = {name: n for n, name in enumerate(config.sources)}
    columns = [
        [bytes.fromhex(i) for i in ids],
        pa.array(range(size) if source.rows is None else source.rows, pa.int32()),
        pa.array(keys, pa.binary(16)),
        pa.array([c[:8] for c in content], pa.binary(8)),
        urls.cast(pa.binary(8)) if urls.type == pa.null() else urls,
        times.cast(pa.int64()),
        pa.array(map(len, texts), pa.uint32()) if config.prefer == "longest" else pa.nulls(size, pa.uint32()),
        pa.array([ranks.get(s, len(ranks)) for s in table.column("source").to_pylist()], pa.uint16()) if ranks else pa.nulls(size, pa.uint16()),
        pa.array([op == "gone" for op in table.column("op").to_pylist()]),
        pa.array(wide),
        pa.array(counts),
        pa.array(shares, mask=shares == 0),
        pa.array(items.tolist(), pa.string()),
    ]
    out.table("index", pa.table(columns, schema=ROWS))
    if near and size:
        with out.path("index/{stem}.npy", rows=size) as tmp, open(tmp, "wb") as f:
            np.save(f, sigs, allow_pickle=False)
    if config.decontaminate:
        out.table("overlaps", overlaps.table(ids))
    return Counts()
