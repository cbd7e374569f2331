"""Evaluation sets, URLs, preferences, the price of an index, memory: each rule of dedup on its own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmpipe.config import load
from llmpipe.data.ids import doc_id
from llmpipe.dedup.settings import Config
from llmpipe.dedup.urls import url_key
from llmpipe.errors import UsageError
from tests.dedup.test_dedup_stage import edited, live, rows_of, table
from tests.inprocess import run
from tests.material import bilingual_rows, chinese, english, write_docs_dir


def names(output: Path, texts: dict[str, str]) -> set[str]:
    return {n for n in texts if doc_id(n) in live(output)}


def test_documents_that_hold_evaluation_items_go_and_each_item_is_reported(make_docs, tmp_path: Path):
    question, frage = "Which of the rivers in the old book runs past the quiet town in the north?", "下列哪一条河流经过北方那个安静的小镇并且流入大海？"
    items = [{"question": question, "choices": ["yes", "no"]}, {"question": frage}, {"question": "too short"}, {"question": english(99, 3)}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
    twelve = " ".join(question.split()[:12])
    texts = {"en": english(1) + " " + question.upper() + english(2), "zh": chinese(1) + frage + chinese(2), "near": english(3) + " " + twelve + " " + english(4), "nah": chinese(3) + frage[:19] + chinese(4), "clean": english(5), "en-2": edited(english(1) + " " + question + english(2), 1)}
    make_docs(tmp_path / "docs", rows_of(texts))
    sets = f"decontaminate=[{tmp_path / 'test.jsonl'}]"
    done = run("dedup", tmp_path / "docs", tmp_path / "out", sets)
    assert names(tmp_path / "out", texts) == {"near", "nah", "clean"}
    dropped = {d["id"]: d for d in table(tmp_path / "out" / "dropped")}
    assert {d["rule"] for d in dropped.values()} == {"contaminated"} and dropped[doc_id("zh")]["partner_id"] == "test.jsonl#2"
    assert (dropped[doc_id("en")]["partner_id"], dropped[doc_id("en")]["value"]) == ("test.jsonl#1", "1")
    report = {r["item"]: r for r in pq.read_table(tmp_path / "out" / "overlaps" / "items-00000.parquet").to_pylist()}
    assert [(report[f"test.jsonl#{n}"]["documents"], report[f"test.jsonl#{n}"]["ngrams"] > 0) for n in (1, 2, 3, 4)] == [(2, True), (1, True), (0, False), (0, True)]
    assert done.counts.extra == {"evaluation_items": 4, "evaluation_items_found": 2, "evaluation_items_too_short": 1}
    run("dedup", tmp_path / "docs", tmp_path / "report", sets, "overlap.action=report", "near=null")
    assert names(tmp_path / "report", texts) == set(texts) and table(tmp_path / "report" / "overlaps")
    # the set's content is part of the recipe
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": english(5)}) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="another recipe"):
        run("dedup", tmp_path / "docs", tmp_path / "out", sets)


def test_of_one_url_the_newest_or_the_first_stays(make_docs, tmp_path: Path):
    def row(name: str, url: str, day: int, text: str, canonical: str | None = None) -> dict:
        return {"id": doc_id(name), "url": url, "text": text, "fetched_at": datetime(2026, 1, day, tzinfo=UTC), "meta": {"canonical": canonical}}

    old, new, zh = row("old", "http://a.example/p?utm_source=x", 1, english(1)), row("new", "http://a.example/p", 5, english(2)), row("zh", "http://a.example/zh?print=1", 2, chinese(3), "http://a.example/zh")
    zh_2, other = row("zh-2", "http://a.example/zh", 9, chinese(4)), row("other", "http://b.example/p", 1, chinese(5))
    everyone = [old, new, zh, zh_2, other]
    write_docs_dir(tmp_path / "all", everyone)
    kept = {}
    for which in ("off", "first", "newest"):
        run("dedup", tmp_path / "all", tmp_path / which, f"url={which}")
        kept[which] = set(live(tmp_path / which))
    assert kept["off"] == {r["id"] for r in everyone}
    assert kept["first"] == {r["id"] for r in (old, zh, other)} and kept["newest"] == {r["id"] for r in (new, zh_2, other)}
    assert {(d["rule"], d["partner_id"]) for d in table(tmp_path / "newest" / "dropped")} == {("url", new["id"]), ("url", zh_2["id"])}
    for which in ("first", "newest"):  # A then B keeps the same
        write_docs_dir(tmp_path / f"grow-{which}", everyone[::2])
        run("dedup", tmp_path / f"grow-{which}", tmp_path / f"out-{which}", f"url={which}")
        write_docs_dir(tmp_path / f"grow-{which}", everyone[1::2])
        run("dedup", tmp_path / f"grow-{which}", tmp_path / f"out-{which}", f"url={which}")
        assert set(live(tmp_path / f"out-{which}")) == kept[which]


def test_a_declared_canonical_address_counts_on_its_own_host_only():
    assert url_key("http://a.example/x?print=1", "http://a.example/x") == url_key("http://a.example/x", None)
    assert url_key("http://a.example/x", "http://b.example/x") == url_key("http://a.example/x", None)
    assert url_key("http://a.example/x", "http://a.example/") == url_key("http://a.example/x", None)
    assert url_key("手册/第一章.txt", None) == "手册/第一章.txt" and url_key(None, "http://a.example/") is None


def test_preferred_sources_then_length_choose_who_stays_but_what_stands_stays(make_docs, tmp_path: Path):
    en, zh = english(1, 30), chinese(1, 30)
    rows = rows_of({"en-forum": en, "zh-forum": zh, "en-book": edited(en, 1), "zh-long": zh + chinese(9, 1), "zh-book": edited(zh, 1)})
    for r in rows:
        r["source"] = "books" if r["url"].endswith("book") else "forum"
    write_docs_dir(tmp_path / "docs", rows)
    run("dedup", tmp_path / "docs", tmp_path / "sources", "sources=[books, forum]")
    assert set(live(tmp_path / "sources")) == {doc_id("en-book"), doc_id("zh-book")}
    run("dedup", tmp_path / "docs", tmp_path / "longest", "prefer=longest")
    assert doc_id("zh-long") in live(tmp_path / "longest") and len(live(tmp_path / "longest")) == 2
    write_docs_dir(tmp_path / "grow", rows[:2])
    run("dedup", tmp_path / "grow", tmp_path / "out", "sources=[books, forum]", "prefer=longest")
    write_docs_dir(tmp_path / "grow", rows[2:])
    run("dedup", tmp_path / "grow", tmp_path / "out", "sources=[books, forum]", "prefer=longest")
    assert set(live(tmp_path / "out")) == {doc_id("en-forum"), doc_id("zh-forum")}


def test_raw_keeps_texts_that_differ_in_case_or_punctuation(make_docs, tmp_path: Path):
    texts = {"a": "Hello, world", "b": "hello world", "c": "Hello, world", "zh": "你好，世界", "zh-2": "你好世界", "zh-3": "你好，世界"}
    make_docs(tmp_path / "docs", rows_of(texts))
    run("dedup", tmp_path / "docs", tmp_path / "out", "exact=raw", "near=null")
    assert names(tmp_path / "out", texts) == {"a", "b", "zh", "zh-2"}


def test_the_index_takes_at_most_650_bytes_a_document(tmp_path: Path):
    write_docs_dir(tmp_path / "docs", bilingual_rows(3000, sentences=4), shards=2)
    run("dedup", tmp_path / "docs", tmp_path / "out")
    size = sum(p.stat().st_size for p in (tmp_path / "out" / "index").iterdir())
    assert len(live(tmp_path / "out")) > 2900 and size / 3000 <= 650


def test_what_does_not_fit_in_memory_is_refused_before_the_start(llmpipe, make_docs, tmp_path: Path):
    make_docs(tmp_path / "docs", rows_of({"en": english(1), "zh": chinese(1)}))
    plan = llmpipe("dedup", "--input", "docs", "--output", "out", "--dry-run", "--json", "--set", "max_ram_gb=2")
    estimate = json.loads(plan.stdout)["estimate"]
    assert 0.1 < estimate["ram_gb"] < 1 and estimate["max_ram_gb"] == 2 and not (tmp_path / "out").exists()
    refused = llmpipe("dedup", "--input", "docs", "--output", "out", "--set", "max_ram_gb=0.01")
    assert refused.returncode == 2 and "needs about" in refused.stderr and "hint:" in refused.stderr
    assert llmpipe("dedup", "--input", "docs", "--output", "out", "--set", "max_ram_gb=2").returncode == 0


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/dedup/*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_drop_copies(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from llmpipe.stage import STAGES, Options, Request, run_stage

    text = path.read_text(encoding="utf-8")
    (tmp_path / "evaluation").mkdir()
    for name in ("evaluation/test.jsonl", "evaluation/questions.parquet"):
        if name in text:
            (tmp_path / "evaluation" / "test.jsonl").write_text(json.dumps({"text": english(50, 5)}) + "\n", encoding="utf-8")
    (tmp_path / path.name).write_text(text, encoding="utf-8")
    config = load(Config, stage="dedup", file=tmp_path / path.name, environ={})
    write_docs_dir(tmp_path / "docs", rows_of({"en": english(1), "en-2": english(1), "zh": chinese(1), "zh-2": chinese(1)}))
    done = run_stage(STAGES["dedup"], config, Request(inputs=(tmp_path / "docs",), output=tmp_path / "out"), Options(workers=1))
    assert (done.counts.kept, done.counts.dropped) == (2, {"exact": 2})
