"""The clean stage as a user runs it: files, growth, resume, same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmpipe.data.docs import read_docs
from llmpipe.data.ids import content_hash, doc_id
from tests.inprocess import run
from tests.killing import digests, kill_until_done
from tests.material import bilingual_rows, chinese, english, write_docs_dir


def table(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve units of good and bad documents in both languages."""
    rows = bilingual_rows(240, sentences=14)
    for i, row in enumerate(rows):
        if i % 10 == 3:
            row["text"] = row["text"][:60]
        if i % 10 == 4:
            row["text"] += "\r\nwrite to someone@mail.example.com or 13812345678."
    return write_docs_dir(tmp_path_factory.mktemp("clean") / "docs", rows, shards=12)


def test_writes_documents_and_says_why_the_rest_was_dropped(llmpipe, corpus: Path, tmp_path: Path):
    done = llmpipe("clean", "--input", corpus, "--output", "out", "--workers", 1)
    assert done.returncode == 0, done.stderr
    kept, dropped = table(tmp_path / "out"), table(tmp_path / "out" / "dropped")
    assert len(kept) + len(dropped) == 240 and len(dropped) == 24
    assert {(d["stage"], d["rule"], d["threshold"]) for d in dropped} == {("clean", "gopher_quality.min_words", "50")}
    assert all(d["snippet"] and d["url"] and float(d["value"]) < 50 for d in dropped)
    assert {k["language"] for k in kept} == {"en", "zh"} and all(0.5 < k["language_score"] <= 1 for k in kept)
    assert all(k["content_hash"] == content_hash(k["text"]) for k in kept)
    redacted = [k for k in kept if "<EMAIL>" in k["text"]]
    assert len(redacted) == 24 and all("<PHONE>" in k["text"] and "\r" not in k["text"] for k in redacted)
    values = table(tmp_path / "out" / "values")
    assert len(values) == 240 and all(v["num_words"] is not None and v["dup_5_gram"] is not None for v in values)
    assert sum(v["rule"] == "gopher_quality.min_words" for v in values) == 24
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))["generations"][0]["counts"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (240, 216, {"gopher_quality.min_words": 24})
    assert counts["extra"]["pii.email"] == counts["extra"]["pii.phone"] == 24


def test_same_bytes_for_one_and_two_workers_and_after_kills(corpus: Path, tmp_path: Path):
    whole = tmp_path / "whole"
    kill_until_done(["clean", "--input", corpus, "--output", whole, "--workers", 1], whole, kills=0)
    parallel = tmp_path / "parallel"
    kill_until_done(["clean", "--input", corpus, "--output", parallel, "--workers", 2], parallel, kills=0)
    killed = tmp_path / "killed"
    assert kill_until_done(["clean", "--input", corpus, "--output", killed, "--workers", 1], killed, kills=5) == 5
    assert digests(whole) == digests(parallel) == digests(killed)


def test_languages_and_their_score(make_docs, tmp_path: Path):
    german = "Dies ist ein deutscher Satz, der hier steht, weil die Sprache erkannt werden soll. " * 8
    texts = {"en": english(1), "zh": chinese(1), "de": german}
    make_docs(tmp_path / "docs", [{"id": doc_id(k), "text": v} for k, v in texts.items()])
    run("clean", tmp_path / "docs", tmp_path / "out", "languages=[en, zh-CN]", "presets=[]")
    assert [k["language"] for k in table(tmp_path / "out")] == ["en", "zh"]
    (dropped,) = table(tmp_path / "out" / "dropped")
    assert (dropped["rule"], dropped["value"], dropped["threshold"]) == ("language", "de", "en,zh")
    run("clean", tmp_path / "docs", tmp_path / "sure", "min_language_score=0.999999", "presets=[]")
    assert {d["rule"] for d in table(tmp_path / "sure" / "dropped")} == {"language_score"}


def test_pii_can_drop_the_document(make_docs, tmp_path: Path):
    rows = [{"id": doc_id(str(i)), "text": t} for i, t in enumerate([english(1), english(2) + " a@b.org", chinese(3) + "电话13812345678。"])]
    make_docs(tmp_path / "docs", rows)
    run("clean", tmp_path / "docs", tmp_path / "out", "pii=drop", "presets=[]")
    assert [d["rule"] for d in table(tmp_path / "out" / "dropped")] == ["pii.email", "pii.phone"]
    assert [k["text"] for k in table(tmp_path / "out")] == [english(1)]


def test_a_changed_document_that_a_rule_now_drops_is_gone(make_docs, tmp_path: Path):
    a, b, c = (doc_id(x) for x in "abc")
    make_docs(tmp_path / "docs", [{"id": a, "text": english(1)}, {"id": b, "text": chinese(2)}, {"id": c, "text": english(3)}])
    run("clean", tmp_path / "docs", tmp_path / "out")
    make_docs(tmp_path / "docs", [{"id": a, "text": "short", "op": "changed"}, {"id": b, "text": chinese(9), "op": "changed"}, {"id": c, "text": "", "op": "gone"}, {"id": doc_id("d"), "text": english(5)}])
    run("clean", tmp_path / "docs", tmp_path / "out")
    live = {r["id"]: r["text"] for batch in read_docs(tmp_path / "out") for r in batch.to_pylist()}
    assert live == {b: chinese(9), doc_id("d"): english(5)}
    assert [r["id"] for r in table(tmp_path / "out" / "dropped")] == [a]
    assert run("clean", tmp_path / "docs", tmp_path / "out").state == "fresh"


def test_dry_run_shows_what_each_rule_would_drop_and_writes_nothing(corpus: Path, tmp_path: Path):
    sample = run("clean", corpus, tmp_path / "out", "sample=120", dry_run=True).plan["sample"]
    assert sample["documents"] == 120 and not (tmp_path / "out").exists()
    rule = sample["rules"]["gopher_quality.min_words"]
    assert 0 < rule["first_fail"] <= rule["any_fail"] < 0.5 and rule["examples"]


def test_a_wrong_name_is_a_usage_error_with_the_nearest(llmpipe, corpus: Path):
    done = llmpipe("clean", "--input", corpus, "--output", "out", "--set", "filters=[gopher_qualty]")
    assert done.returncode == 2 and "did you mean gopher_quality?" in done.stderr
    done = llmpipe("clean", "--input", corpus, "--output", "out", "--set", "pii=maybe")
    assert done.returncode == 2 and "redact, drop, off" in done.stderr
