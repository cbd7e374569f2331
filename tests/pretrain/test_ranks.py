"""Several processes for one model, over gloo: any number of them goes on where another number stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from llmpipe.data.manifest import read_manifest
from llmpipe.models.hf import load_model
from llmpipe.training.metrics import read_metrics
from tests.pretrain.runs import arguments, steady, wait_for
from tests.warm import start, start_ranks

ROOT = Path(__file__).parents[2]
FEW = {"steps": 18, "checkpoint_every": 6, "sample_tokens": 4, "eval_every": 6}


def finish(processes: list[BaseProcess], log: Path) -> None:
    for process in processes:
        process.join(120)
    logs = "\n".join(p.read_text() for p in log.parent.glob(f"{log.name}*"))
    assert [p.exitcode for p in processes] == [0] * len(processes), logs


def stop_after(processes: list[BaseProcess], output: Path, lines: int) -> None:
    """Send SIGTERM once `metrics.jsonl` has so many lines; all processes must save together and leave."""
    wait_for(processes[0], lambda: len(steady(output)) >= lines)
    for process in processes[:1]:  # one of them is enough: all leave when one is told to
        process.terminate()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [143] * len(processes)


@pytest.fixture(scope="module")
def alone(tokens_root: Path) -> Path:
    process = start(tokens_root, arguments("alone", **FEW), log=tokens_root / "alone.txt")
    finish([process], tokens_root / "alone.txt")
    return tokens_root / "alone"


def test_one_then_two_then_one_process_give_the_losses_of_one(here: Path, alone: Path) -> None:
    log = here / "log.txt"
    sets = arguments("moved", **{**FEW, "log_every": 1})
    stop_after([start(here, sets, log=log)], here / "moved", 3)
    stop_after(start_ranks(here, sets, size=2, log=log), here / "moved", 9)
    newest = max(p for p in (here / "moved" / "checkpoints").iterdir() if p.name.startswith("step-"))
    assert json.loads((newest / "state.json").read_text())["world_size"] == 2 and len(list(newest.glob("shard-*.safetensors"))) == 2
    finish([start(here, sets, log=log)], log)
    moved, before, worst = {r["step"]: r for r in steady(here / "moved")}, 0, 0.0
    for wanted in steady(alone):
        step = wanted["step"]
        losses = [moved[s]["loss"] for s in range(before + 1, step + 1)]  # a line's loss is the mean since the line before
        pairs = [(sum(losses) / len(losses), wanted["loss"]), *((moved[step][k], wanted[k]) for k in ("val_loss", "val_bpb") if k in wanted)]
        worst, before = max(worst, *(abs(a - b) / b for a, b in pairs)), step
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert worst < 1e-3
    (model, _), (other, _) = load_model(here / "moved"), load_model(alone)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}


def test_two_processes_publish_one_model_and_repeat_bit_by_bit(here: Path) -> None:
    for name in ("a", "b"):
        finish(start_ranks(here, arguments(name, **FEW), size=2, log=here / f"{name}.txt"), here / f"{name}.txt")
    assert steady(here / "a") == steady(here / "b")
    assert (here / "a" / "model.safetensors").read_bytes() == (here / "b" / "model.safetensors").read_bytes()
    assert read_manifest(here / "a", kind="model").info["steps"] == 18
    assert len(read_metrics(here / "a" / "samples" / "pretrain.jsonl")) == 3
    second = start_ranks(here, arguments("a", **FEW), size=2, log=here / "again.txt")
    finish(second, here / "again.txt")
    assert "fresh" in (here / "again.txt.0").read_text() and not (here / "again.txt.1").read_text()


def test_torchrun_ends_all_when_one_is_killed_and_the_same_command_goes_on(here: Path, alone: Path) -> None:
    command = [ROOT / "scripts" / "gpu_run.sh", *arguments("spun", **FEW)[1:]]
    environ = {**os.environ, "GPUS": "2", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    with open(here / "out.txt", "w") as out:
        agent = subprocess.Popen(command, cwd=here, env=environ, stdout=out, stderr=subprocess.STDOUT)
    children: list[int] = []
    while agent.poll() is None and not (here / "spun" / "checkpoints" / "step-00000005").exists():
        time.sleep(0.01)
        children = [int(c) for c in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]
    assert len(children) == 2, (here / "out.txt").read_text()
    os.kill(children[1], signal.SIGKILL)
    assert agent.wait(60) != 0
    assert not any(Path(f"/proc/{c}").exists() for c in children)
    log = here / "log.txt"
    finish([start(here, arguments("spun", **FEW), log=log)], log)
    assert "going on at step" in log.read_text()
    assert steady(here / "spun")[-1]["val_loss"] == pytest.approx(steady(alone)[-1]["val_loss"], rel=1e-3)


def test_what_processes_cannot_share_is_refused(here: Path) -> None:
    processes = start_ranks(here, arguments("uneven", batch_tokens=7 * 32), size=2, log=here / "log.txt")
    for process in processes:
        process.join(120)
    assert processes[0].exitcode == 2 and "7 sequences a step are not divisible among 2 processes" in (here / "log.txt.0").read_text()
