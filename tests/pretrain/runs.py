"""A tiny pretraining run as a command line, and how the tests look at it."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from llmpipe.training.metrics import read_metrics

SETS = {
    "model.num_layers": 2, "model.dim": 32, "model.num_heads": 2, "model.num_kv_heads": 1, "seq_len": 32, "batch_tokens": 256, "micro_batch": 4,
    "steps": 30, "eval_every": 10, "log_every": 4, "checkpoint_every": 3, "threads": 1, "dtype": "fp32", "eval_tokens": 500,
}


def arguments(output: str, **changes: object) -> list[str]:
    sets = {k: v for k, v in {**SETS, **{k.replace("__", "."): v for k, v in changes.items()}}.items() if v is not None}
    return ["pretrain", "--input", "tokens", "--output", output, *(x for k, v in sets.items() for x in ("--set", f"{k}={v}"))]


def steady(path: Path) -> list[dict]:
    """The metrics without what only time decides."""
    return [{k: v for k, v in r.items() if k not in ("tokens_per_s", "mfu")} for r in read_metrics(path / "metrics.jsonl")]


def wait_for(process: BaseProcess, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline and not condition():
        time.sleep(0.002)
