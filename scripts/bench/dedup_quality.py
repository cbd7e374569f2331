"""Measure recall and precision of dedup against brute force: every pair of documents, shingled and compared by other code.

    python scripts/bench/dedup_quality.py DOCS.jsonl [--raw] [--language zh] [--set near.threshold=0.7 …]

Reads rows with `text`. Truth is the exact Jaccard similarity of all pairs: 5 words of English (`\\w+`, small letters), 8
characters of Chinese (without spaces and punctuation); with `--raw` 5 pieces between white space, as they stand, and 8
characters as they stand. Recall at s: of the pairs with J >= s, those of which at least one is dropped. Precision: of the
dropped documents, those that have a partner in the input at J >= 0.65 (Chinese: 0.58). Also: that partners are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from llmpipe.config import load
from llmpipe.data.docs import read_docs, write_docs
from llmpipe.data.ids import doc_id
from llmpipe.data.manifest import Generation, Manifest, write_manifest
from llmpipe.stage import STAGES, Options, Request, run_stage

HAN = re.compile(r"[\u4e00-\u9fff]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--language", choices=("en", "zh"), help="of all documents; default: each by its share of Han characters")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    arguments = parser.parse_args()
    texts = [json.loads(line)["text"] for line in arguments.file.open(encoding="utf-8")]
    chinese = np.array([arguments.language == "zh" if arguments.language else len(HAN.findall(t)) > 0.3 * len(t.replace(" ", "")) for t in texts])
    for name, own in (("en", np.flatnonzero(~chinese)), ("zh", np.flatnonzero(chinese))):
        if len(own) > 1:
            sys.stdout.write(f"{name}: " + measure([texts[i] for i in own], name == "zh", arguments) + "\n")


def shingles(text: str, chinese: bool, raw: bool) -> set[str]:
    if chinese:
        pieces = list(re.sub(r"\s+", "", text) if raw else "".join(re.findall(r"[^\W_]", text.lower())))
    else:
        pieces = text.split() if raw else re.findall(r"\w+", text.lower())
    n = 8 if chinese else 5
    return {"\x00".join(pieces[i : i + n]) for i in range(max(len(pieces) - n + 1, 1))}


def all_pairs(texts: list[str], chinese: bool, raw: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return i < j and J of all pairs that share a shingle."""
    sets = [np.fromiter({int.from_bytes(hashlib.blake2b(s.encode(), digest_size=8).digest()) for s in shingles(t, chinese, raw)}, np.uint64) for t in texts]
    columns = np.unique(np.concatenate(sets), return_inverse=True)[1]
    starts = np.append(0, np.cumsum([len(s) for s in sets]))
    matrix = csr_matrix((np.ones(len(columns), np.int32), columns, starts), shape=(len(sets), columns.max() + 1))
    sizes = np.diff(starts)
    out = []
    for low in range(0, len(sets), 500):
        part = (matrix[low : low + 500] @ matrix.T).tocoo()
        i, j = part.row + low, part.col
        jaccard = part.data / (sizes[i] + sizes[j] - part.data)
        keep = (i < j) & (jaccard >= 0.5)
        out.append((i[keep], j[keep], jaccard[keep]))
    return tuple(np.concatenate(c) for c in zip(*out, strict=True))


def measure(texts: list[str], chinese: bool, arguments: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        ids = [doc_id(str(n)) for n in range(len(texts))]
        shard = write_docs(root / "in" / "part-00000-000000.parquet", ({"id": i, "text": t} for i, t in zip(ids, texts, strict=True)))
        counts = {"read": len(ids), "kept": len(ids), "dropped": {}, "extra": {}}
        write_manifest(root / "in", Manifest(stage="ingest", kind="docs", recipe={}, fingerprint="", generations=[Generation(number=0, counts=counts, made={})], shards=[shard]))
        config = load(STAGES["dedup"].load().Config, stage="dedup", sets=arguments.sets, environ={})
        run_stage(STAGES["dedup"], config, Request(inputs=(root / "in",), output=root / "out"), Options(workers=1))
        kept_ids = {i for batch in read_docs(root / "out", columns=["id"]) for i in batch.column(0).to_pylist()}
    kept = np.array([i in kept_ids for i in ids])
    i, j, jaccard = all_pairs(texts, chinese, arguments.raw)
    both = kept[i] & kept[j]
    out = [f"{len(texts)} documents, {int(kept.sum())} kept"]
    for bound in (0.9, 0.8, 0.7):
        pairs = jaccard >= bound
        out.append(f"recall at J >= {bound}: {1 - both[pairs].mean() if pairs.any() else 1:.4f} of {int(pairs.sum())}")
    best = np.zeros(len(texts))
    np.maximum.at(best, i, np.where(kept[j], jaccard, 0))
    np.maximum.at(best, j, np.where(kept[i], jaccard, 0))
    good = best[~kept] >= (0.58 if chinese else 0.65)
    out.append(f"precision: {good.mean() if len(good) else 1:.4f} of {len(good)} (partner among those kept)")
    return "; ".join(out)


if __name__ == "__main__":
    main()
