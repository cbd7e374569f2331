"""The dry run: rates, examples and thresholds, on a sample or from the values of an output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.inprocess import run
from tests.material import bilingual_rows, write_docs_dir


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half English, half Chinese, each with a third of short texts."""
    rows = bilingual_rows(120, sentences=14)
    for i, row in enumerate(rows):
        if i % 6 in (2, 3):
            row["text"] = row["text"][: 150 if i % 2 == 0 else 60]
    return write_docs_dir(tmp_path_factory.mktemp("sweep") / "docs", rows, shards=4)


def sample(corpus: Path, output: Path, *sets: str) -> dict:
    return run("clean", corpus, output, "sample=120", *sets, dry_run=True).plan["sample"]


def test_values_of_an_output_answer_for_other_thresholds_as_judging_anew_does(corpus: Path, tmp_path: Path):
    looser = "filters=[{gopher_quality: {min_words: 20}}, {fineweb_quality: {max_newline_ratio: 0.1}}]"
    run("clean", corpus, tmp_path / "out")
    for sets in ((), (looser,), ("languages=[zh]",), ("presets=[gopher]",)):
        anew, reused = sample(corpus, tmp_path / "none", *sets), sample(corpus, tmp_path / "out", *sets)
        assert (anew["from"], reused["from"]) == ("sample", "values")
        assert anew["kept"] == reused["kept"] and anew["documents"] == reused["documents"] == 120
        assert {k: (v["first_fail"], v["any_fail"]) for k, v in anew["rules"].items()} == {k: (v["first_fail"], v["any_fail"]) for k, v in reused["rules"].items()}
        assert {e["id"] for v in anew["rules"].values() for e in v["examples"]} <= {r["id"] for r in bilingual_rows(120)}


def test_other_measurements_are_made_anew(corpus: Path, tmp_path: Path):
    run("clean", corpus, tmp_path / "out")
    for sets in ("presets=[c4]", "filters=[{fineweb_quality: {short_line_chars: 50}}]", "presets=[mc4]", "filters=[{c4: off}]"):
        assert sample(corpus, tmp_path / "out", sets)["from"] == "sample", sets


def test_five_examples_with_value_address_and_beginning(corpus: Path, tmp_path: Path):
    found = sample(corpus, tmp_path / "none")
    rule = found["rules"]["gopher_quality.min_words"]
    assert rule["any_fail"] == pytest.approx(40 / 120) and rule["threshold"] == 50
    assert len(rule["examples"]) == 5
    assert all(e["value"] < 50 and e["url"].startswith("http://docs.example/") and len(e["snippet"]) > 20 for e in rule["examples"])


def test_sweeps_show_how_many_each_threshold_would_drop(corpus: Path, tmp_path: Path):
    sweep = "sweep={gopher_quality.min_words: [1, 50, 10000]}"
    run("clean", corpus, tmp_path / "out")
    for output in ("none", "out"):
        rows = sample(corpus, tmp_path / output, sweep)["sweep"]["gopher_quality.min_words"]
        assert [(r["threshold"], r["any_fail"], r["kept"]) for r in rows] == [(1, 0, 81), (50, pytest.approx(1 / 3), 80), (10000, 1, 0)]
    with pytest.raises(ValueError, match="no rule 'gopher_quality.min_word' here"):
        sample(corpus, tmp_path / "out", "sweep={gopher_quality.min_word: [1]}")


def test_the_table_for_people_and_the_object_for_scripts(llmpipe, corpus: Path):
    shown = llmpipe("clean", "--input", corpus, "--output", "out", "--dry-run")
    assert "120 documents (sample), 80 kept (66.7%)" in shown.stdout and "gopher_quality.min_words" in shown.stdout and "http://docs.example" in shown.stdout
    found = json.loads(llmpipe("clean", "--input", corpus, "--output", "out", "--dry-run", "--json").stdout)
    assert found["sample"]["kept"] == 80 and found["stage"] == "clean"
