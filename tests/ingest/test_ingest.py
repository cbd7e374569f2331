"""Files of every kind become documents; what is broken is counted with its place; a second run reads what is new."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmpipe.crawl.warc import WarcWriter
from llmpipe.data.docs import read_docs
from llmpipe.data.ids import doc_id
from llmpipe.errors import InputError, UsageError
from llmpipe.ingest import stage, units
from llmpipe.ingest.stage import Config
from llmpipe.stage import STAGES, Options, Request, run_stage
from tests.material import chinese, english


def ingest(output: Path, *inputs: Path, workers: int = 1, **config):
    return run_stage(STAGES["ingest"], Config(**config), Request(inputs=inputs, output=output), Options(workers=workers))


def docs(output: Path) -> list[dict]:
    return [row for batch in read_docs(output) for row in batch.to_pylist()]


def texts(output: Path) -> list[str]:
    return sorted(row["text"] for row in docs(output))


def dropped(output: Path) -> list[tuple[str, str]]:
    return sorted((row["rule"], row["url"]) for path in (output / "dropped").glob("*.parquet") for row in pq.read_table(path).to_pylist())


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def html(text: str) -> str:
    return f"<html><head><title>T</title></head><body><nav><a href='/'>home</a></nav><article><p>{text}</p></article></body></html>"


def test_reads_every_format_and_compression(tmp_path):
    source, zh, en = tmp_path / "in", chinese(1), english(1)
    source.mkdir()
    line = (json.dumps({"text": zh}, ensure_ascii=False) + "\n" + json.dumps({"text": en}) + "\n").encode()
    two_frames = pa.Codec("zstd").compress(line).to_pybytes() * 2
    for suffix, data in {"": line, ".gz": gzip.compress(line), ".bz2": bz2.compress(line), ".xz": lzma.compress(line), ".zst": two_frames}.items():
        (source / f"a.jsonl{suffix}").write_bytes(data)
    pq.write_table(pa.table({"text": [zh, en]}), source / "b.parquet", row_group_size=1)
    (source / "c.txt").write_bytes(zh.encode("gb18030"))
    (source / "d.md").write_text(f"# 标题\n\n{en}", encoding="utf-8")
    (source / "e.html").write_text(html(zh), encoding="utf-8")
    with WarcWriter(source / "f.warc.gz") as writer:
        for url, text in (("http://x.example/zh", zh), ("http://x.example/en", en)):
            writer.write(url, 200, {"Content-Type": "text/html; charset=utf-8"}, html(text).encode(), datetime(2026, 1, 2, tzinfo=UTC))
        writer.write("http://x.example/404", 404, {"Content-Type": "text/html"}, b"no", datetime(2026, 1, 2, tzinfo=UTC))
    (source / ".hidden.txt").write_text("hidden", encoding="utf-8")
    (source / "picture.png").write_bytes(b"\x89PNG")
    outcome = ingest(tmp_path / "docs", source)
    found = docs(tmp_path / "docs")
    assert [r["text"] for r in found].count(zh) == 10
    assert sum(r["text"].endswith(en) for r in found) == 9
    assert {r["title"] for r in found if r["source"] == "d.md"} == {"标题"}
    assert {r["id"] for r in found if r["source"] == "f.warc.gz"} == {doc_id("http://x.example/zh"), doc_id("http://x.example/en")}
    assert len({r["id"] for r in found}) == len(found) == outcome.counts.kept
    assert outcome.counts.dropped == {"status": 1, "unknown_format": 1}


def test_broken_records_are_dropped_with_their_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"text": "好的"}, ensure_ascii=False).encode()
    path.write_bytes(b"\n".join([good, b'{"text": "cut', b"[1, 2]", b'{"text": 5}', b'{"other": "x"}', b"[" * 100_000, b'{"text": "' + b"x" * 5000 + b'"}', b"", '{"text": "中\\u0000文"}'.encode(), '{"text": "编码是国标的一行"}'.encode("gb18030")]))
    ingest(tmp_path / "docs", path, max_record_bytes=200_000)
    assert texts(tmp_path / "docs") == sorted(["好的", "x" * 5000, "中文", "编码是国标的一行"])
    assert dropped(tmp_path / "docs") == sorted([("broken_json", "rows.jsonl:2"), ("not_an_object", "rows.jsonl:3"), ("no_text", "rows.jsonl:4"), ("no_text", "rows.jsonl:5"), ("broken_json", "rows.jsonl:6")])
    ingest(tmp_path / "short", path, max_record_bytes=1000)
    assert ("too_long", "rows.jsonl:7") in dropped(tmp_path / "short")
    assert "中文" in texts(tmp_path / "short")


def test_broken_files_and_bombs_are_dropped_with_a_reason(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    page = gzip.compress(html(english(2)).encode())
    (source / "cut.html.gz").write_bytes(page[:-20])
    (source / "crc.html.gz").write_bytes(page[:-8] + b"\0" * 8)
    (source / "bomb.html.gz").write_bytes(gzip.compress(b"<p>" + b"0" * 20_000_000))
    (source / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 50_000)[:-30])
    (source / "really.pdf.txt").write_bytes(b"%PDF-1.5 \0\0")
    (source / "empty.txt").write_bytes(b"")
    (source / "good.txt").write_text("好文章", encoding="utf-8")
    outcome = ingest(tmp_path / "docs", source, max_record_bytes=1_000_000)
    assert outcome.counts.dropped == {"broken_file": 3, "too_long": 1, "not_text": 1, "no_text": 1}
    assert "好文章" in texts(tmp_path / "docs")


def test_fields_are_mapped_and_a_wrong_mapping_shows_what_there_is(tmp_path):
    rows = [{"content": chinese(n), "key": f"k{n}", "link": f"http://x.example/{n}", "label": "新闻", "score": n} for n in range(3)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        out = tmp_path / f"docs-{name}"
        ingest(out, tmp_path / name, text_field="content", id_field="key", url_field="link", meta_fields=["label", "score"], source="报纸")
        (first, *_) = sorted(docs(out), key=lambda r: r["url"])
        assert (first["id"], first["url"], first["source"]) == (doc_id("k0"), "http://x.example/0", "报纸")
        assert {m["key"]: m["value"] for m in first["meta"]} == {"label": "新闻", "score": "0", "file": f"0/{name}"}
        for wrong in ({"text_field": "text"}, {"text_field": "content", "id_field": "uid"}, {"text_field": "content", "meta_fields": ["tag"]}):
            with pytest.raises(InputError, match=r"no field .*content .*key .*label"):
                ingest(tmp_path / "wrong", tmp_path / name, **wrong)
    with pytest.raises(InputError, match="holds int64, not text"):
        ingest(tmp_path / "wrong", tmp_path / "rows.parquet", text_field="score")
    ingest(tmp_path / "wrong", tmp_path / "rows.parquet", text_field="content")  # put right, it goes through


def test_the_same_bytes_whatever_the_workers_and_units(tmp_path, monkeypatch):
    source = tmp_path / "in"
    source.mkdir()
    write_jsonl(source / "rows.jsonl", [{"text": f"{n} {english(n)}{chinese(n)}"} for n in range(300)])
    for n in range(6):
        (source / f"{n}.txt").write_text(chinese(n), encoding="utf-8")
    monkeypatch.setattr(units, "UNIT_BYTES", 40_000)
    ingest(tmp_path / "one", source, workers=1)
    ingest(tmp_path / "two", source, workers=2)
    names = sorted(p.name for p in (tmp_path / "one").glob("*.parquet"))
    assert len(names) > 5
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    monkeypatch.undo()
    ingest(tmp_path / "whole", source)
    assert sorted((r["id"], r["text"]) for r in docs(tmp_path / "one")) == sorted((r["id"], r["text"]) for r in docs(tmp_path / "whole"))


def test_a_unit_with_much_text_writes_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SHARD_TEXT_BYTES", 5_000)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": chinese(n)}) + "\n" for n in range(100)).encode()))
    ingest(tmp_path / "docs", path)
    assert len(list((tmp_path / "docs").glob("*.parquet"))) > 3
    assert texts(tmp_path / "docs") == sorted(chinese(n) for n in range(100))


def test_a_second_run_reads_only_what_is_new_changed_or_gone(tmp_path):
    source, out = tmp_path / "in", tmp_path / "docs"
    source.mkdir()
    write_jsonl(source / "a.jsonl", [{"url": f"http://x.example/{n}", "text": f"第{n}篇"} for n in range(4)])
    (source / "b.txt").write_text("going away", encoding="utf-8")
    ingest(out, source)
    assert ingest(out, source).state == "fresh"
    write_jsonl(source / "a.jsonl", [{"url": "http://x.example/0", "text": "第0篇"}, {"url": "http://x.example/1", "text": "改过的"}, {"url": "http://x.example/9", "text": "new"}])
    (source / "b.txt").unlink()
    (source / "c.txt").write_text("又一个", encoding="utf-8")
    outcome = ingest(out, source)
    assert texts(out) == sorted(["第0篇", "改过的", "new", "又一个"])
    assert outcome.counts.extra == {"unchanged": 1, "gone": 3}
    assert sorted(r["op"] for p in out.glob("part-00001-*.parquet") for r in pq.read_table(p).to_pylist()) == ["changed", "gone", "gone", "gone", "new", "new"]
    (source / "b.txt").write_text("going away", encoding="utf-8")  # what was gone may come again
    (source / "a.jsonl").rename(source / "z.jsonl")  # and records may move
    ingest(out, source)
    assert texts(out) == sorted(["第0篇", "改过的", "new", "又一个", "going away"])
    (source / "z.jsonl").unlink()
    ingest(out, source)
    assert texts(out) == sorted(["又一个", "going away"])


def test_a_text_file_is_split_at_separator_lines(tmp_path):
    parts = [f"{english(n)}\n{chinese(n)}" for n in range(5)]
    (tmp_path / "all.txt.zst").write_bytes(pa.Codec("zstd").compress("\n\f\n".join(parts).encode()).to_pybytes())
    ingest(tmp_path / "docs", tmp_path / "all.txt.zst", split="\f")
    assert texts(tmp_path / "docs") == sorted(parts)
    with pytest.raises((UsageError, ValueError), match="not a regular expression"):
        Config(split="(")


def test_links_out_of_a_folder_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("秘密 secret", encoding="utf-8")
    source = tmp_path / "in"
    source.mkdir()
    (source / "link.txt").symlink_to(tmp_path / "secret.txt")
    (source / "real.txt").write_text("真的", encoding="utf-8")
    ingest(tmp_path / "docs", source)
    assert texts(tmp_path / "docs") == ["真的"]


def test_input_without_a_document_and_broken_parquet_are_errors(tmp_path, llmpipe):
    (tmp_path / "empty.txt").write_bytes(b"")
    result = llmpipe("ingest", "empty.txt", "--output", "docs")
    assert result.returncode == 3 and "no documents" in result.stderr
    pq.write_table(pa.table({"text": ["好"] * 1000}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    result = llmpipe("ingest", "x.parquet", "--output", "docs2")
    assert result.returncode == 3 and "x.parquet:1: broken_file" in result.stderr
    result = llmpipe("ingest", "missing", "--output", "docs3")
    assert result.returncode == 3 and "no such file" in result.stderr
