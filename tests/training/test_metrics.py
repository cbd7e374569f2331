"""metrics.jsonl holds each step once, whatever was killed when."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path

import pytest

from llmpipe.errors import UsageError
from llmpipe.training.metrics import Metrics, check_trackers, read_metrics, trackers


def test_lines_beyond_the_checkpoint_and_torn_ones_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (5, 10, 15, 20)) + '{"step": 25, "lo', encoding="utf-8")
    metrics = Metrics(path, after=10)
    assert metrics.last_step == 10
    metrics.write({"step": 15, "loss": math.nan})
    metrics.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(5, 1.0), (10, 1.0), (15, None)]


def test_going_back_forgets_the_lines_beyond(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", after=0)
    for step in (5, 10, 15):
        metrics.write({"step": step, "loss": 1.0})
    metrics.rewind(10)
    metrics.write({"step": 15, "loss": 2.0})
    metrics.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [(5, 1.0), (10, 1.0), (15, 2.0)]


def test_trackers_get_each_line_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple] = []
    board, wandb = types.ModuleType("torch.utils.tensorboard"), types.ModuleType("wandb")
    board.SummaryWriter = lambda folder: types.SimpleNamespace(add_scalar=lambda k, v, step: written.append((folder, k, v, step)), flush=lambda: None)
    wandb.init = lambda **options: types.SimpleNamespace(log=lambda values, step: written.append((options["name"], values, step)))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    names = ["tensorboard", "wandb"]
    check_trackers(names)
    metrics = Metrics(tmp_path / "metrics.jsonl", after=0, sinks=trackers(names, tmp_path, title="base"))
    metrics.write({"step": 5, "loss": 1.5, "mfu": None, "val_bpb_by": {"language": {"zh": 0.9}}})
    metrics.close()
    assert written == [
        (str(tmp_path / "tensorboard"), "loss", 1.5, 5),
        (str(tmp_path / "tensorboard"), "val_bpb_by/language/zh", 0.9, 5),
        ("base", {"loss": 1.5, "val_bpb_by/language/zh": 0.9}, 5),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_said_with_the_command_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=f"{name} is not installed") as caught:
        check_trackers([name])
    assert caught.value.hint == f"pip install 'llmpipe[{name}]'"
