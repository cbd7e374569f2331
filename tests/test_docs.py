"""Documents on disk: one schema, small row groups, readable by pyarrow, pandas and `datasets` as they are."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

from llmpipe.data import docs
from llmpipe.data.ids import content_hash, doc_id
from llmpipe.data.manifest import find_manifest
from llmpipe.errors import InputError
from tests.material import bilingual_rows, write_docs_dir

ROW = {
    "id": doc_id("http://例子.example/"), "url": "http://例子.example/", "text": "你好, world 🌍\n第二行", "title": "标题",
    "language": "zh", "language_score": 0.5, "fetched_at": datetime(2026, 1, 2, tzinfo=UTC), "meta": {"状态": 200, "encoding": "gb18030", "none": None},
}


def test_pyarrow_pandas_and_datasets_read_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets
    import pandas

    path = tmp_path / "docs" / "part-00000-000000.parquet"
    docs.write_docs(path, [ROW, *bilingual_rows(3)])
    assert pq.read_table(path).schema.equals(docs.SCHEMA)
    first = pq.read_table(path).to_pylist()[0]
    assert first["text"] == ROW["text"] and first["op"] == "new" and first["content_hash"] == content_hash(ROW["text"])
    assert first["meta"] == [{"key": "encoding", "value": "gb18030"}, {"key": "状态", "value": "200"}]
    frame = pandas.read_parquet(path)
    assert frame["text"][0] == ROW["text"] and str(frame["fetched_at"][0]) == "2026-01-02 00:00:00+00:00"
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["text"] == ROW["text"] and loaded[0]["meta"] == first["meta"] and loaded.num_rows == 4


def test_row_groups_are_bounded_by_rows_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "MAX_GROUP_ROWS", 10)
    monkeypatch.setattr(docs, "MAX_GROUP_BYTES", 1_000)
    rows = [{"id": f"{i:032x}", "text": "字" * (400 if i == 5 else 3)} for i in range(25)]
    docs.write_docs(tmp_path / "a.parquet", rows)
    groups = docs.parquet_rows(tmp_path / "a.parquet")
    assert sum(groups) == 25 and max(groups) <= 10 and groups[0] == 5  # the long one begins a group of its own


def test_lone_surrogates_become_replacement_characters(tmp_path):
    docs.write_docs(tmp_path / "a.parquet", [{"id": "0" * 32, "text": "a\ud800中"}])
    assert pq.read_table(tmp_path / "a.parquet")["text"].to_pylist() == ["a?中"]


def test_equal_rows_give_equal_bytes(tmp_path):
    shards = [docs.write_docs(tmp_path / name / "a.parquet", bilingual_rows(20)) for name in ("x", "y")]
    assert shards[0] == shards[1]


def test_reading_something_else_is_an_error_that_says_what_it_is(tmp_path):
    directory = write_docs_dir(tmp_path / "docs", bilingual_rows(4))
    shard = directory / find_manifest(directory).shards[0].name
    shard.write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match="not a whole Parquet file"):
        list(docs.read_docs(directory))
