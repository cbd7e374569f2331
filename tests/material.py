"""Small real-looking inputs in English and Chinese, made from a seed; nothing here is downloaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmpipe.data.docs import write_docs
from llmpipe.data.ids import doc_id
from llmpipe.data.manifest import Generation, Manifest, find_manifest, write_manifest

ENGLISH = "the river runs past a quiet town where people read old books and talk of the weather that will come with the wind from the north".split()
CHINESE = "河水 流过 安静 的 小镇 人们 在 这里 读书 和 谈论 天气 北方 的 风 会 带来 雨水 我们 都 喜欢 这个 地方".split()


def english(seed: int, sentences: int = 12) -> str:
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(ENGLISH, k=rng.randint(8, 16))).capitalize() + "." for _ in range(sentences))


def chinese(seed: int, sentences: int = 12) -> str:
    rng = random.Random(seed)
    return "".join("".join(rng.choices(CHINESE, k=rng.randint(8, 16))) + "。" for _ in range(sentences))


def bilingual_rows(count: int, *, start: int = 0, sentences: int = 12) -> list[dict[str, Any]]:
    """Rows of documents, in turn English and Chinese, each different."""
    rows = []
    for i in range(start, start + count):
        text, language = (english(i, sentences), "en") if i % 2 == 0 else (chinese(i, sentences), "zh")
        url = f"http://docs.example/{language}/{i}.html"
        rows.append({"id": doc_id(url), "url": url, "text": text, "title": f"{language} {i}", "language": language, "source": "test"})
    return rows


def write_docs_dir(path: Path, rows: Sequence[dict[str, Any]], *, shards: int = 1) -> Path:
    """Write rows as a generation of a directory of documents: a new one, or one more on top of those there."""
    old = find_manifest(path)
    generation = len(old.generations) if old else 0
    size = -(-len(rows) // shards)
    made = [
        replace(write_docs(path / f"part-{generation:05d}-{n:06d}.parquet", rows[n * size : (n + 1) * size]), generation=generation)
        for n in range(shards)
    ]
    counts = {"read": len(rows), "kept": len(rows), "dropped": {}, "extra": {}}
    manifest = Manifest(
        stage="ingest", kind="docs", recipe={"stage": "ingest", "version": 1, "config": {}}, fingerprint="test",
        generations=[*(old.generations if old else []), Generation(number=generation, counts=counts, made={"seconds": 0})],
        shards=[*(old.shards if old else []), *made],
    )
    write_manifest(path, manifest)
    return path
