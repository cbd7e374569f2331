"""A ladder's fit finds the law that made its losses, predicts the next rung, and says nothing where there is nothing to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmpipe.pretrain.scaling import fit_power_law, ladder
from tests.material import bilingual_rows

SHIPPED = Path(__file__).parents[2] / "configs" / "pipelines" / "scaling.yaml"


@pytest.mark.parametrize(("floor", "scale", "exponent"), [(1.7, 400.0, 0.15), (0.0, 60.0, 0.08), (2.5, 4e4, 0.3)])
def test_the_law_behind_exact_losses_is_found(floor: float, scale: float, exponent: float) -> None:
    flops = [1e13, 7e13, 5e14, 4e15]
    losses = [floor + scale * c**-exponent for c in flops]
    law = fit_power_law(flops[:3], losses[:3])
    assert law is not None and law.error < 1e-3
    assert law.loss(flops[3]) == pytest.approx(losses[3], rel=0.01)


def test_losses_that_do_not_fall_have_no_law() -> None:
    assert fit_power_law([1e13, 1e14, 1e15], [3.0, 3.1, 3.2]) is None


def test_the_next_rung_and_the_held_out_one() -> None:
    runs = [{"name": f"d{i}", "parameters": 10**6 * 4**i, "tokens": 10**7, "flops": 1e13 * 8.0**i, "val_loss": 2 + 100 * (1e13 * 8.0**i) ** -0.12} for i in range(4)]
    assert ladder(runs[:2]) is None
    three, four = ladder(runs[:3]), ladder(list(reversed(runs)))
    assert three["next"]["parameters"] == runs[3]["parameters"] and three["next"]["val_loss"] == pytest.approx(runs[3]["val_loss"], rel=0.01)
    assert three["held_out"] is None and four["held_out"]["predicted"] == pytest.approx(four["held_out"]["measured"], rel=0.01)


def test_the_shipped_ladder_runs_and_its_report_predicts(tmp_path: Path, run: Callable) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i, row in enumerate(bilingual_rows(60)):
        (texts / f"{i}.txt").write_text(row["text"], encoding="utf-8")
    tiny = "model.num_layers=2 seq_len=32 batch_tokens=512 steps={steps} threads=1 dtype=fp32 sample_tokens=0 checkpoint_every=1000"
    sets = ["ingest.input=texts", "clean.presets=[]", "clean.filters=[]", "dedup.near=null", "tokenizer.vocab_size=380", "tokenize.valid_fraction=0.2"]
    for name, dim, steps in (("small", 16, 10), ("medium", 32, 25), ("large", 64, 40)):
        sets += [f"{name}.{x}" for x in (*tiny.format(steps=steps).split(), "depth=null", "tokens_per_param=null", f"model.dim={dim}", "model.num_heads=2")]
    done = run("run", SHIPPED, "--output", "out", "--workers", "1", *(x for s in sets for x in ("--set", s)))
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Scaling" in report and "L(C) = " in report and "| next " in report
    assert "Three sizes determine the curve" in report
