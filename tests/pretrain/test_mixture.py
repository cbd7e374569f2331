"""Several tokens directories with weights: a killed run ends with the same weights, and says what it saw of each source."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llmpipe.data.manifest import read_manifest
from llmpipe.training.metrics import read_metrics
from tests.material import bilingual_rows
from tests.pretrain.runs import SETS, steady

MIXTURE = "mixture={weights: {en: 3, zh: 1}, max_epochs: {zh: 40}}"


def command(output: str, *inputs: str) -> list[str]:
    sets = {**SETS, "steps": 16, "eval_every": 8}
    return ["pretrain", *(a for i in inputs for a in ("--input", i)), "--output", output, "--set", MIXTURE, *(x for k, v in sets.items() for x in ("--set", f"{k}={v}"))]


def test_a_killed_mixed_run_ends_with_the_same_weights(tmp_path: Path, make_docs: Callable, run: Callable) -> None:
    rows = bilingual_rows(40)
    make_docs(tmp_path / "docs", rows)
    assert run("tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=380").returncode == 0
    for language in ("en", "zh"):
        make_docs(tmp_path / f"docs_{language}", [r for r in rows if r["language"] == language])
        done = run("tokenize", "--workers", 1, "--input", f"docs_{language}", "--tokenizer", "tok", "--output", language, "--set", "valid_fraction=0.2")
        assert done.returncode == 0, done.stderr
    done = run(*command("whole", "en", "zh"))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen([sys.executable, "-m", "llmpipe", *command("killed", "en", "zh")], cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not (tmp_path / "killed" / "checkpoints" / "step-00000003").exists():
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert run(*command("killed", "en", "zh")).returncode == 0
    assert steady(tmp_path / "killed") == steady(tmp_path / "whole")
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    info = read_manifest(tmp_path / "whole", kind="model").info
    seen = info["samples_by_source"]
    assert sum(seen.values()) == 16 * 8 and abs(seen["en"] - 96) <= 3 and info["epochs_by_source"]["zh"] > 0
    assert read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]["samples_by_source"] == seen
    done = run(*command("wrong", "en"))
    assert done.returncode == 2 and "mixture.weights names zh" in done.stderr
