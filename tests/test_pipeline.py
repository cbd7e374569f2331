"""Pipelines: planned as a whole, run from top to bottom, skipped where fresh, rebuilt only behind what changed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmpipe.data.manifest import find_manifest
from llmpipe.pipeline import load_pipeline
from tests.material import chinese, english

CHAIN = """
steps:
  - ingest: {input: texts}
  - clean: {filters: [], presets: []}
  - dedup: {near: null}
  - tokenizer: {vocab_size: 400}
  - tokenize: {valid_fraction: 0.2}
  - pretrain: {model: {num_layers: 1, dim: 32, num_heads: 2}, seq_len: 32, batch_tokens: 256, steps: 6, optimizer: adamw, lr: 1e-3, threads: 1}
  - eval: {}
  - generate: {prompts: ["the river 河水"], max_new_tokens: 8, num_samples: 2, seed: 3}
  - export: {}
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for i in range(24):
        (tmp_path / "texts" / f"{i:02d}.txt").write_text(english(i) if i % 2 else chinese(i), encoding="utf-8")
    (tmp_path / "chain.yaml").write_text(CHAIN, encoding="utf-8")
    return tmp_path / "chain.yaml"


def test_whole_chain_runs_once_and_is_fresh_the_second_time(llmpipe, chain, tmp_path):
    assert [r["state"] for r in json.loads(llmpipe("run", chain, "--dry-run", "--json").stdout)["steps"]] == ["absent"] + ["waiting"] * 8
    first = llmpipe("run", chain, "--json")
    assert first.returncode == 0, first.stderr
    steps = json.loads(first.stdout)["steps"]
    assert [s["step"] for s in steps] == ["ingest", "clean", "dedup", "tokenizer", "tokenize", "pretrain", "eval", "generate", "export"]
    report = (tmp_path / "runs" / "chain" / "report.md").read_text(encoding="utf-8")
    assert "bits_per_byte" in report and "xz" in report and "the river 河水" in report
    card = (tmp_path / "runs" / "chain" / "export" / "README.md").read_text(encoding="utf-8")
    assert "ingest -> clean -> dedup -> tokenizer -> tokenize -> pretrain" in card
    second = json.loads(llmpipe("run", chain, "--json").stdout)
    assert {s["state"] for s in second["steps"]} == {"fresh"}
    assert llmpipe("verify", "runs/chain").returncode == 0
    rows = json.loads(llmpipe("status", chain, "--json").stdout)["steps"]
    assert {r["state"] for r in rows} == {"fresh"}

    # a change in the middle rebuilds what stands behind it, and nothing before
    changed = json.loads(llmpipe("run", chain, "--set", "tokenize.valid_fraction=0.3", "--until", "tokenize", "--json").stdout)
    assert [s["state"] for s in changed["steps"]] == ["fresh"] * 4 + ["absent"]
    plan = json.loads(llmpipe("run", chain, "--set", "tokenize.valid_fraction=0.3", "--dry-run", "--json").stdout)["steps"]
    assert [r["state"] for r in plan][4:7] == ["fresh", "stale", "waiting"]

    # new files flow through as new generations; the tokenizer is frozen
    (tmp_path / "texts" / "new.txt").write_text(english(99) + "\n" + chinese(98), encoding="utf-8")
    grown = json.loads(llmpipe("run", chain, "--set", "tokenize.valid_fraction=0.3", "--until", "tokenize", "--json").stdout)
    assert [s["state"] for s in grown["steps"]] == ["behind", "behind", "behind", "fresh", "behind"]
    assert [s["counts"]["read"] for s in grown["steps"]][1:3] == [1, 1]


def test_a_second_run_on_one_directory_ends_with_75(llmpipe, chain, tmp_path):
    hold = "import sys,pathlib\nfrom llmpipe.data.files import directory_lock\nwith directory_lock(pathlib.Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "runs" / "chain")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        out = llmpipe("run", chain)
        holder.kill()
    assert out.returncode == 75 and "in use by another run" in out.stderr and "hint: " in out.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_leave_a_run_that_goes_on(llmpipe, chain, tmp_path, number, code):
    assert llmpipe("run", chain, "--until", "tokenize").returncode == 0
    command = [sys.executable, "-m", "llmpipe", "run", str(chain), "--set", "pretrain.steps=5000", "--until", "pretrain"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        metrics = tmp_path / "runs" / "chain" / "pretrain" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "error: " in err and "hint: " in err and "Traceback" not in err
    assert list((tmp_path / "runs" / "chain" / "pretrain" / "checkpoints").glob("step-*"))
    assert find_manifest(tmp_path / "runs" / "chain" / "pretrain") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("step: []\n", "a pipeline has a list of steps"),
        ("steps: [clen]\n", "unknown stage 'clen'; did you mean clean?"),
        ("steps: [clean]\n", "no earlier step makes docs"),
        ("steps:\n  - ingest: {input: a}\n  - clean: {langages: [zh]}\n", "langages: unknown key; did you mean languages?"),
        ("steps:\n  - ingest: {input: a}\n  - dedup\n  - dedup\n", "two steps are named dedup"),
        ("steps:\n  - ingest: {input: a, name: ../up}\n", "may hold letters"),
        ("steps:\n  - ingest: {input: a}\n  - clean: {languages: 5}\n  - dedup: {neer: 1}\n", "neer"),
    ],
)
def test_faults_of_a_pipeline_are_found_before_anything_runs(llmpipe, tmp_path, text, words):
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    out = llmpipe("run", "p.yaml")
    assert out.returncode == 2 and words in out.stderr and not (tmp_path / "runs").exists()


def test_steps_can_be_named_and_wired(tmp_path):
    (tmp_path / "p.yaml").write_text(
        "steps:\n  - ingest: {name: zh, input: [a, b]}\n  - ingest: {name: en, input: c}\n  - clean: {input: [zh, en]}\n  - tokenizer\n  - tokenize: {input: zh}\n", encoding="utf-8"
    )
    steps = {s.name: s for s in load_pipeline(tmp_path / "p.yaml", run_dir=tmp_path / "run").steps}
    run = tmp_path / "run"
    assert steps["zh"].request.inputs == (tmp_path / "a", tmp_path / "b")
    assert steps["clean"].request.inputs == (run / "zh", run / "en")
    assert steps["tokenizer"].request.inputs == (run / "clean",)
    assert steps["tokenize"].request.inputs == (run / "zh",) and steps["tokenize"].request.tokenizer == run / "tokenizer"


def test_two_horizons_are_refused(llmpipe, chain):
    out = llmpipe("run", chain, "--set", "pretrain.tokens=100", "--dry-run")
    assert out.returncode == 2 and "steps" in out.stderr and "tokens" in out.stderr


def test_set_names_a_step(llmpipe, chain):
    out = llmpipe("run", chain, "--set", "claen.pii=off")
    assert out.returncode == 2 and "did you mean clean?" in out.stderr
