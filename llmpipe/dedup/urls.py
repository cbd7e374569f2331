"""The identity of a document by its URL, for `url: first` and `url: newest`.

    hashes, times = url_hashes(table)       # of a table with url, meta and fetched_at

A page may name its canonical address (`<link rel=canonical>`, in meta). It counts where it lies on the same host and is
not the host's front page: sites that name one address for all their pages are not rare.
"""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from llmpipe.crawl.urls import canonical
from llmpipe.data.docs import meta_value
from llmpipe.dedup.index import Rows
from llmpipe.work import Work


def url_key(url: str | None, declared: str | None) -> str | None:
    """Return the canonical key of a document's address; None where it has none."""
    if not url:
        return None
    if declared:
        own, other = urlsplit(url), urlsplit(declared)
        if other.netloc == own.netloc and (other.path.strip("/") or other.query or not own.path.strip("/")):
            url = declared
    return canonical(url) if "://" in url else url


def url_hashes(table: pa.Table) -> tuple[pa.Array, pa.Array]:
    """Hash the keys of a table's rows to 64 bits (null where there is no URL); and when each was fetched, in microseconds."""
    keys = [url_key(u, meta_value(m, "canonical")) for u, m in zip(table.column("url").to_pylist(), table.column("meta").to_pylist(), strict=True)]
    hashes = [hashlib.blake2b(k.encode("utf-8", "surrogatepass"), digest_size=8).digest() if k else None for k in keys]
    return pa.array(hashes, pa.binary(8)), table.column("fetched_at").combine_chunks().cast(pa.int64())


def pending_urls(work: Work) -> dict[int, int]:
    """Read which URLs the pending documents have, and the time of the newest of each."""
    newest: dict[int, int] = {}
    for unit in work.doc_units():
        hashes, times = url_hashes(unit.read(["url", "meta", "fetched_at"]))
        for key, time in zip(hashes.to_pylist(), times.to_pylist(), strict=True):
            if key is not None:
                number = int.from_bytes(key, "little")
                newest[number] = max(newest.get(number, 0), time or 0)
    return newest


def outdated(rows: Rows, pending: dict[int, int]) -> np.ndarray:
    """(n,) whether a pending document has the row's URL and was fetched later."""
    if not pending:
        return np.zeros(len(rows), bool)
    keys = np.array(sorted(pending), np.uint64)
    times = np.array([pending[int(k)] for k in keys], np.int64)
    at = np.minimum(np.searchsorted(keys, rows.url_hashes), len(keys) - 1)
    return (keys[at] == rows.url_hashes) & (times[at] > rows.times)
