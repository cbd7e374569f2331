"""The stage contract: states, generations, locks, what a kill or an error leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmpipe.data.docs import read_docs
from llmpipe.data.manifest import find_manifest, verify_manifest
from llmpipe.errors import InputError, LlmpipeError, LockedError, UsageError
from llmpipe.stage import Options, Request, run_stage
from tests.counting_stage import STAGE, Config
from tests.material import bilingual_rows, write_docs_dir


def run(source: Path, output: Path, config: Config | None = None, **options: object):
    return run_stage(STAGE, config or Config(), Request(inputs=(source,), output=output), Options(workers=1, **options))


def texts(directory: Path) -> list[str]:
    return [t for batch in read_docs(directory, columns=["text"]) for t in batch.column("text").to_pylist()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_docs_dir(tmp_path / "in", bilingual_rows(40), shards=4)


def test_second_run_is_fresh_and_touches_nothing(source, tmp_path):
    first = run(source, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != ".lock"}
    second = run(source, tmp_path / "out")
    assert (first.state, second.state) == ("absent", "fresh")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != ".lock"} == before


def test_new_shards_alone_are_processed_and_appended(source, tmp_path):
    run(source, tmp_path / "out")
    write_docs_dir(source, bilingual_rows(10, start=40))
    trace = tmp_path / "trace"
    outcome = run(source, tmp_path / "out", Config(trace=trace))
    assert outcome.state == "behind" and outcome.counts.read == 10
    assert len(trace.read_text().split()) == 1
    assert sorted(texts(tmp_path / "out")) == sorted(r["text"] for r in bilingual_rows(50))


def test_other_recipe_is_refused_with_a_diff_and_rebuilt_with_force(source, tmp_path):
    run(source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"config\.suffix  -> !"):
        run(source, tmp_path / "out", Config(suffix="!"))
    assert not any(t.endswith("!") for t in texts(tmp_path / "out"))
    run(source, tmp_path / "out", Config(suffix="!"), force=True)
    assert all(t.endswith("!") for t in texts(tmp_path / "out"))
    assert verify_manifest(tmp_path / "out", find_manifest(tmp_path / "out")) == []


def test_inside_a_run_directory_a_stale_output_is_rebuilt(source, tmp_path):
    run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", Config(suffix="。"), owned=True).state == "absent"
    assert all(t.endswith("。") for t in texts(tmp_path / "out"))


def test_cosmetic_fields_do_not_make_an_output_stale(source, tmp_path):
    run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", Config(fail_at="nowhere")).state == "fresh"


def test_failed_run_goes_on_where_it_stopped(source, tmp_path):
    trace = tmp_path / "trace"
    with pytest.raises(LlmpipeError, match="told to fail"):
        run(source, tmp_path / "out", Config(fail_at="00-part-00000-000002-0000", trace=trace))
    assert find_manifest(tmp_path / "out") is None
    outcome = run(source, tmp_path / "out", Config(trace=trace))
    assert outcome.state == "partial"
    assert len(trace.read_text().split()) == 4  # each unit once, over both runs
    assert texts(tmp_path / "out") == [r["text"] for r in bilingual_rows(40)]


def test_torn_journal_line_is_dropped(source, tmp_path):
    with pytest.raises(LlmpipeError):
        run(source, tmp_path / "out", Config(fail_at="00-part-00000-000003-0000"))
    journal = tmp_path / "out" / "state" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    run(source, tmp_path / "out")
    assert texts(tmp_path / "out") == [r["text"] for r in bilingual_rows(40)]


def test_changed_input_is_an_error_that_names_it(source, tmp_path):
    run(source, tmp_path / "out")
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["shards"][1]["sha256"] = "0" * 64
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="part-00000-000001.parquet changed"):
        run(source, tmp_path / "out")


def test_foreign_directory_is_refused_and_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "论文.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match="论文"):
            run(source, tmp_path / "out", force=force)
    assert (tmp_path / "out" / "论文.txt").read_text() == "mine"


def test_output_of_another_stage_is_foreign(source, tmp_path):
    with pytest.raises(UsageError, match="made by llmpipe ingest"):
        run(source, write_docs_dir(tmp_path / "other", bilingual_rows(2)), force=True)
    with pytest.raises(UsageError, match="also an input"):
        run(source, source)


def test_force_keeps_files_that_llmpipe_did_not_make(source, tmp_path):
    run(source, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(source, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_missing_input_and_directory_without_manifest_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"bare: no manifest\.json"):
        run(tmp_path / "bare", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_parquet_is_named(source, tmp_path):
    shard = source / "part-00000-000002.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(InputError, match="part-00000-000002"):
        run(source, tmp_path / "out")


def test_verify_finds_a_flipped_byte(source, tmp_path):
    run(source, tmp_path / "out")
    shard = next((tmp_path / "out").glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert verify_manifest(tmp_path / "out", find_manifest(tmp_path / "out")) == [f"{shard}: content differs from its sha256 in the manifest"]


def test_manifest_cannot_point_outside_its_directory(source, tmp_path):
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["shards"][0]["name"] = "../secret.parquet"
    (source / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="outside"):
        run(source, tmp_path / "out")


def test_second_process_is_locked_out(source, tmp_path):
    hold = "import sys,pathlib\nfrom llmpipe.data.files import directory_lock\nwith directory_lock(pathlib.Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=str(holder.pid)):
            run(source, tmp_path / "out")
        holder.kill()
    run(source, tmp_path / "out")


def test_same_bytes_for_any_number_of_workers(source, tmp_path):
    run(source, tmp_path / "one")
    run_stage(STAGE, Config(), Request(inputs=(source,), output=tmp_path / "two"), Options(workers=2))
    one, two = (find_manifest(tmp_path / name) for name in ("one", "two"))
    assert one.shards == two.shards and one.fingerprint == two.fingerprint


def test_changed_and_gone_rows_supersede_earlier_ones(tmp_path):
    rows = bilingual_rows(4)
    source = write_docs_dir(tmp_path / "in", rows)
    write_docs_dir(source, [{**rows[0], "text": "new text 新", "op": "changed"}, {**rows[1], "op": "gone"}])
    assert texts(source) == [rows[2]["text"], rows[3]["text"], "new text 新"]
