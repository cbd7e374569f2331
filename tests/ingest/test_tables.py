"""Tables of every kind give the same rows; a wrong mapping shows what there is; what is broken is counted with its place."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from llmpipe.data.ids import doc_id
from llmpipe.errors import InputError
from llmpipe.ingest import units
from tests.ingest.mixed import docs, dropped, ingest, texts
from tests.material import chinese, english

ROWS = [{"title": f"题{n}", "text": f"{chinese(n, 2)}, \"{english(n, 2)}\"\n第二行", "label": "新闻"} for n in range(6)]


def test_every_table_gives_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_BYTES", 300)  # several units a file
    source = tmp_path / "in"
    source.mkdir()
    table = pa.Table.from_pylist(ROWS)
    (source / "array.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=2), encoding="utf-8")
    (source / "lines.json").write_text("".join(json.dumps(r) + "\n" for r in ROWS), encoding="utf-8")
    quoted = "".join(",".join('"' + r[c].replace('"', '""') + '"' for c in r) + "\r\n" for r in ROWS)
    (source / "bom.csv").write_bytes(b"\xef\xbb\xbf" + f"title,text,label\r\n{quoted}".encode())
    (source / "gbk.csv").write_bytes(f"title,text,label\r\n{quoted}".encode("gb18030"))
    (source / "excel.tsv").write_bytes(('"title"\t"text"\t"label"\r\n' + quoted.replace('","', '"\t"')).encode("utf-16"))
    for name, make in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with make(source / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    pq.write_table(table, source / "t.parquet", row_group_size=2)
    Dataset.from_list(ROWS).save_to_disk(source / "one")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(source / "splits")
    (source / "one" / "cache-1234.arrow").write_bytes((source / "file.arrow").read_bytes())  # what `datasets` leaves beside its shards
    outcome = ingest(tmp_path / "docs", source, meta_fields=["label"])
    found = docs(tmp_path / "docs")
    by_file: dict[str, list[str]] = {}
    for row in found:
        by_file.setdefault(row["source"], []).append(row["text"])
    assert {name: sorted(rows) for name, rows in by_file.items()} == {name: sorted(r["text"] for r in ROWS) for name in by_file}
    assert len(by_file) == 11 and outcome.counts.dropped == {} and outcome.counts.kept == 66
    assert {r["title"] for r in found} == {r["title"] for r in ROWS} and len({r["id"] for r in found}) == 66


def test_fields_may_be_nested_and_several(tmp_path):
    rows = [{"data": {"head": "标题", "body": f"正文 body {n}"}, "meta": {"lang": "zh", "url": f"http://x.example/{n}"}} for n in range(2)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.parquet"):
        out = tmp_path / f"docs-{name}"
        ingest(out, tmp_path / name, text_field=["data.head", "data.body"], language_field="meta.lang", url_field="meta.url")
        assert texts(out) == ["标题\n\n正文 body 0", "标题\n\n正文 body 1"]
        assert {(r["language"], r["id"]) for r in docs(out)} == {("zh", doc_id(f"http://x.example/{n}")) for n in range(2)}
        with pytest.raises(InputError, match=r"no field 'data.bodi'; did you mean data.body\?; it has data.head \(string\), data.body \(string\)"):
            ingest(tmp_path / "wrong", tmp_path / name, text_field="data.bodi")
        with pytest.raises(InputError, match=r"no field 'text'.*meta.lang \(string\)") as error:
            ingest(tmp_path / "wrong", tmp_path / name)
        assert error.value.hint == "--set text_field=data.body"


def test_broken_rows_are_counted_and_the_rest_is_read(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.csv").write_text('text,n\n好,1\nb,2,3\n"x" y,4\nlast one,5\n,6\n"never closed\n一,7\n', encoding="utf-8")
    (source / "b.json").write_text('[{"text": "一"}, null, {"text": "two"}, {"text": "cut', encoding="utf-8")
    (source / "c.json").write_text('{"text": "三"}\n{"text": broken}\n{"text": "four"}\n', encoding="utf-8")
    with pa.ipc.new_stream(source / "d.arrow", pa.schema([("text", pa.string())])) as writer:
        for n in range(4):
            writer.write_batch(pa.record_batch({"text": [f"第{n}批" * 50]}))
    (source / "d.arrow").write_bytes((source / "d.arrow").read_bytes()[:-900])
    good = pa.record_batch({"text": ["甲乙", "c"]})
    offsets = pa.py_buffer(b"\0\0\0\0\xff\xff\xff\x7f\x07\0\0\0")  # points far outside of the data
    with pa.ipc.new_file(source / "e.arrow", good.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.StringArray.from_buffers(2, offsets, good.column(0).buffers()[2])], names=["text"]))
    pq.write_table(pa.table({"text": ["x"]}), source / "f.parquet")
    (source / "f.parquet").write_bytes((source / "f.parquet").read_bytes()[:-7])
    outcome = ingest(tmp_path / "docs", source)
    assert {"好", "last one", "一", "two", "三", "four"} <= set(texts(tmp_path / "docs"))
    found = dropped(tmp_path / "docs")
    assert {("broken_row", "a.csv:3"), ("no_text", "a.csv:6"), ("broken_row", "a.csv:7-8"), ("not_an_object", "b.json:2"), ("broken_json", "b.json:4"), ("broken_json", "c.json:2")} <= set(found)
    assert {place.partition(":")[0] for rule, place in found if rule == "broken_file"} == {"d.arrow", "e.arrow", "f.parquet"}
    assert outcome.counts.read == outcome.counts.kept + sum(outcome.counts.dropped.values())


def test_a_missing_shard_of_a_data_set_is_counted(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "set", num_shards=2)
    (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
    outcome = ingest(tmp_path / "docs", tmp_path / "set")
    assert outcome.counts.dropped == {"missing_file": 1} and outcome.counts.kept == 3
    assert dropped(tmp_path / "docs") == [("missing_file", "data-00001-of-00002.arrow")]
