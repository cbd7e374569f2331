"""Dedup as a user runs it: who stays, growth, resume, same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmpipe.config import load
from llmpipe.data.docs import read_docs
from llmpipe.data.ids import doc_id
from llmpipe.dedup.settings import Config
from llmpipe.stage import STAGES, Options, Request, run_stage
from tests.inprocess import run
from tests.killing import digests, kill_until_done
from tests.material import bilingual_rows, chinese, english, write_docs_dir


def table(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def live(output: Path) -> dict[str, str]:
    return {r["id"]: r["text"] for batch in read_docs(output) for r in batch.to_pylist()}


def rows_of(texts: dict[str, str], op: str = "new") -> list[dict]:
    return [{"id": doc_id(name), "url": f"http://docs.example/{name}", "text": text, "op": op} for name, text in texts.items()]


def edited(text: str, seed: int) -> str:
    """Change a few words (English) or characters (Chinese) in one place."""
    half = len(text) // 2
    return text[:half] + (f" edit{seed} " if text.isascii() else "改" * (seed % 3 + 1)) + text[half + 4 :]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve units in both languages; every third document is an edited copy of an earlier one, every tenth an exact one."""
    rng = random.Random(0)
    rows = bilingual_rows(240, sentences=14)
    for i, row in enumerate(rows):
        if i > 20 and i % 3 == 0:
            row["text"] = edited(rows[rng.randrange(i)]["text"], i)
        elif i > 20 and i % 10 == 1:
            row["text"] = rows[rng.randrange(i)]["text"]
        elif i % 4 == 3:  # a passage and a line that others have, too
            row["text"] += "\nHome | About\n" + (chinese(777, 4) if row["language"] == "zh" else english(777, 4))
    return write_docs_dir(tmp_path_factory.mktemp("dedup") / "docs", rows, shards=12)


def test_first_seen_stays_and_every_dropped_document_names_its_partner(make_docs, tmp_path: Path):
    en, zh = english(1, 30), chinese(1, 30)
    texts = {
        "en": en, "zh": zh, "en-edited": edited(en, 1), "zh-edited": edited(zh, 1), "en-copy": en, "zh-spaced": zh.replace("。", "。\n"),
        "short": "Not found.", "short-copy": "not found", "kurz": "页面不存在", "kurz-copy": "页面不存在。", "other": english(2, 30), "symbols": "***", "symbols-2": "---", "symbols-copy": "***",
    }  # fmt: skip
    make_docs(tmp_path / "docs", rows_of(texts))
    run("dedup", tmp_path / "docs", tmp_path / "out")
    assert set(live(tmp_path / "out")) == {doc_id(n) for n in ("en", "zh", "short", "kurz", "other", "symbols", "symbols-2")}
    dropped = {d["id"]: d for d in table(tmp_path / "out" / "dropped")}
    expected = {"en-edited": ("near", "en"), "zh-edited": ("near", "zh"), "en-copy": ("exact", "en"), "zh-spaced": ("exact_normalized", "zh"), "short-copy": ("exact_normalized", "short"), "kurz-copy": ("exact_normalized", "kurz"), "symbols-copy": ("exact", "symbols")}
    assert {i: (d["rule"], d["partner_id"]) for i, d in dropped.items()} == {doc_id(n): (rule, doc_id(p)) for n, (rule, p) in expected.items()}
    near = dropped[doc_id("zh-edited")]
    assert 0.75 <= float(near["value"]) < 1 and near["threshold"] == "0.75" and near["url"] and near["snippet"]


def test_no_chains_nothing_is_dropped_for_a_document_that_is_dropped(make_docs, tmp_path: Path):
    for make, join in ((english, " "), (chinese, "")):
        parts = [make(i, 3) for i in range(20)]
        drift = {f"{make.__name__}{k}": join.join(parts[k : k + 12]) for k in range(8)}  # neighbours share 11 of 12 parts
        make_docs(tmp_path / make.__name__, rows_of(drift))
        run("dedup", tmp_path / make.__name__, tmp_path / f"out-{make.__name__}")
        kept = set(live(tmp_path / f"out-{make.__name__}"))
        partners = {d["partner_id"] for d in table(tmp_path / f"out-{make.__name__}" / "dropped")}
        assert partners <= kept and 2 <= len(kept) < 8


def test_settings_turn_parts_off_and_on(llmpipe, make_docs, tmp_path: Path):
    en = english(1, 30)
    make_docs(tmp_path / "docs", rows_of({"a": en, "b": en, "c": edited(en, 1)}))
    for k, (sets, kept) in enumerate([(["near=null"], "ac"), (["exact=false", "near.threshold=0.99"], "ac"), (["near.threshold=0.999"], "ac"), (["near.ngram=1"], "a")]):
        run("dedup", tmp_path / "docs", tmp_path / f"out{k}", *sets)
        assert set(live(tmp_path / f"out{k}")) == {doc_id(n) for n in kept}, sets
    bad = llmpipe("dedup", "--input", "docs", "--output", "bad", "--set", "near.threshold=1.5", "--set", "near.num_band=3")
    assert bad.returncode == 2 and "did you mean num_bands?" in bad.stderr


def test_same_bytes_for_one_two_and_seven_workers_and_after_kills(corpus: Path, tmp_path: Path):
    sets = ["lines.min_docs=3", "lines.min_chars=5", "substrings.min_tokens=30", "url=newest"]  # everything on
    config = load(Config, stage="dedup", sets=sets, environ={})
    made = []
    for workers in (1, 2, 7):
        done = run_stage(STAGES["dedup"], config, Request(inputs=(corpus,), output=tmp_path / str(workers)), Options(workers=workers))
        made.append(digests(tmp_path / str(workers)))
    assert done.counts.extra["cut_substrings"] > 0 < done.counts.extra["cut_lines"] and 120 < len(live(tmp_path / "1")) < 170
    killed = tmp_path / "killed"
    arguments = ["dedup", "--input", corpus, "--output", killed, "--workers", 1, *(a for s in sets for a in ("--set", s))]
    assert kill_until_done(arguments, killed, kills=5) == 5
    assert made[0] == made[1] == made[2] == digests(killed)


def test_a_then_b_keeps_the_same_set_as_both_at_once(corpus: Path, tmp_path: Path):
    rows = table(corpus)
    write_docs_dir(tmp_path / "docs", rows[:100], shards=2)
    run("dedup", tmp_path / "docs", tmp_path / "out")
    first = {s: s.read_bytes() for s in (tmp_path / "out").rglob("*") if s.is_file() and s.suffix in (".parquet", ".npy")}
    for part in (rows[100:180], rows[180:]):
        write_docs_dir(tmp_path / "docs", part, shards=2)
        run("dedup", tmp_path / "docs", tmp_path / "out")
    assert all(path.read_bytes() == data for path, data in first.items())  # older generations are as they were
    write_docs_dir(tmp_path / "whole", rows)
    run("dedup", tmp_path / "whole", tmp_path / "at-once")
    assert live(tmp_path / "out") == live(tmp_path / "at-once")
    reasons = [{(d["id"], d["rule"], d["partner_id"], d["value"]) for d in table(tmp_path / o / "dropped")} for o in ("out", "at-once")]
    assert reasons[0] == reasons[1]


def test_when_a_representative_goes_or_changes_its_cluster_elects_another(make_docs, tmp_path: Path):
    en, zh = english(1, 30), chinese(1, 30)
    make_docs(tmp_path / "docs", rows_of({"en": en, "zh": zh, "en-2": edited(en, 1), "zh-2": edited(zh, 1), "en-3": en}))
    run("dedup", tmp_path / "docs", tmp_path / "out")
    assert set(live(tmp_path / "out")) == {doc_id("en"), doc_id("zh")}

    make_docs(tmp_path / "docs", [*rows_of({"en": ""}, "gone"), *rows_of({"zh": chinese(77, 30)}, "changed"), *rows_of({"new": edited(en, 9)})])
    done = run("dedup", tmp_path / "docs", tmp_path / "out")
    assert set(live(tmp_path / "out")) == {doc_id(n) for n in ("zh", "en-2", "zh-2")}
    ops = {(r["id"], r["op"]) for p in (tmp_path / "out").glob("part-00001-*.parquet") for r in pq.read_table(p).to_pylist()}
    assert ops == {(doc_id("en"), "gone"), (doc_id("zh"), "changed"), (doc_id("en-2"), "new"), (doc_id("zh-2"), "new")}
    extra = done.counts.extra
    assert (extra["elected"], extra["gone"]) == (2, 1)

    # the elected one is a representative like any other, and a changed page that is a duplicate now goes
    make_docs(tmp_path / "docs", [*rows_of({"late": en + " "}), *rows_of({"zh": edited(zh, 5)}, "changed")])
    run("dedup", tmp_path / "docs", tmp_path / "out")
    # zh was seen before zh-2, but zh-2 stands in the output and did not change
    assert set(live(tmp_path / "out")) == {doc_id(n) for n in ("en-2", "zh-2")}


def test_later_rows_of_an_id_supersede_earlier_ones_in_one_run(make_docs, tmp_path: Path):
    make_docs(tmp_path / "docs", rows_of({"a": english(1, 30), "b": chinese(1, 30), "c": english(5, 30)}))
    make_docs(tmp_path / "docs", [*rows_of({"a": english(2, 30)}, "changed"), *rows_of({"b": ""}, "gone"), *rows_of({"d": english(1, 30)})])
    run("dedup", tmp_path / "docs", tmp_path / "out")
    assert live(tmp_path / "out") == {doc_id("a"): english(2, 30), doc_id("c"): english(5, 30), doc_id("d"): english(1, 30)}
