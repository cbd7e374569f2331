"""Measure MinHash signatures per core: llmpipe's kernel against datasketch with Python shingling, on the same text.

    python scripts/bench/dedup_signatures.py DOCS_DIR [--docs 2000]

Reads a directory of documents. Prints documents and megabytes per second of CPU time, and the ratio; checks that a sample
of signatures agrees with datasketch's on the same hashes. Both sides run in one process on one core.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasketch import MinHash

from llmpipe.data.docs import read_docs
from llmpipe.dedup.minhash import hashes32, signatures
from llmpipe.dedup.shingles import block_of, prepare, shingles
from llmpipe.text.block import blocks


def kernel(texts: list[str]) -> np.ndarray:
    out = np.empty((len(texts), 112), np.uint32)
    for start, block in blocks([prepare(t) for t in texts], inner_dots=False):
        hashes, docs = shingles(block, block.tables.folded, words=5, characters=8)
        out[start : start + block.num_docs] = signatures(hashes, docs, block.num_docs, num_perm=112, seed=1)
    return out


def datasketch(texts: list[str]) -> None:
    for text in texts:
        words = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+", text.lower())
        sketch = MinHash(num_perm=112, seed=1, scheme="affine32")
        sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(len(words) - 4, 1))])


def measure(name: str, function: Callable[[list[str]], object], texts: list[str]) -> float:
    function(texts[:20])
    start = time.process_time()
    function(texts)
    seconds = time.process_time() - start
    size = sum(len(t.encode()) for t in texts)
    print(f"{name:12} {len(texts) / seconds:10,.0f} docs/s {size / seconds / 1e6:8.1f} MB/s")
    return len(texts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path)
    parser.add_argument("--docs", dest="count", type=int, default=2000)
    arguments = parser.parse_args()
    texts = [t for batch in read_docs(arguments.docs, columns=["text"]) for t in batch.column("text").to_pylist()][: arguments.count]
    block = block_of(texts[:1])
    hashes, _ = shingles(block, block.tables.folded, words=5, characters=8)
    reference = MinHash(num_perm=112, seed=1, scheme="affine32", hashfunc=int)
    reference.update_batch(hashes32(hashes).tolist())
    assert (kernel(texts[:1])[0] == reference.hashvalues).all()
    fast = measure("llmpipe", kernel, texts)
    slow = measure("datasketch", datasketch, texts[: max(len(texts) // 10, 1)])
    print(f"ratio        {fast / slow:10.1f}")


if __name__ == "__main__":
    main()
