"""metrics.jsonl holds each step once, whatever was killed when."""

from __future__ import annotations

import json
import math
from pathlib import Path

from llmpipe.training.metrics import Metrics, read_metrics


def test_lines_beyond_the_checkpoint_and_torn_ones_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (5, 10, 15, 20)) + '{"step": 25, "lo', encoding="utf-8")
    metrics = Metrics(path, after=10)
    assert metrics.last_step == 10
    metrics.write({"step": 15, "loss": math.nan})
    metrics.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(5, 1.0), (10, 1.0), (15, None)]
