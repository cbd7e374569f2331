"""Fit loss against compute over a ladder of sizes, and predict the next one.

    law = fit_power_law([1e13, 6e13, 3e14], [5.1, 4.2, 3.6])
    law.loss(1.5e15)

    llmpipe run configs/pipelines/scaling.yaml      # trains the ladder; the fit stands in its report

The form is L(C) = E + a C^-b (Hoffmann et al. 2022, along compute): E is what no compute removes, C the run's training
FLOPs. With three sizes the curve passes through all of them and nothing is left to judge it by; from four sizes on, the
largest is also predicted from the others, which says what a prediction is worth here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SIZES = 3
EXPONENTS = (0.01, 1.0)  # published ones lie between 0.05 and 0.35; outside of these bounds noise was fitted
GRID = 4000


@dataclass(frozen=True, slots=True)
class PowerLaw:
    floor: float
    scale: float
    exponent: float
    error: float
    """Root mean square of the relative residuals."""

    def loss(self, flops: float) -> float:
        return self.floor + self.scale * flops**-self.exponent


def fit_power_law(flops: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """Find E by search and a, b by least squares on log(L - E); None where loss does not fall with compute."""
    x, y = np.log(np.asarray(flops, dtype=float)), np.asarray(losses, dtype=float)
    best: PowerLaw | None = None
    for floor in y.min() * (1 - np.geomspace(1e-3, 1.0, GRID)):  # fine near the smallest loss, down to 0
        slope, intercept = np.polyfit(x, np.log(y - floor), 1)
        if not EXPONENTS[0] <= -slope <= EXPONENTS[1]:
            continue
        fitted = floor + np.exp(intercept + slope * x)
        error = float(np.sqrt(np.mean((fitted / y - 1) ** 2)))
        if best is None or error < best.error:
            best = PowerLaw(float(floor), math.exp(intercept), -float(slope), error)
    return best


def ladder(runs: Sequence[dict[str, Any]], *, metric: str = "val_loss") -> dict[str, Any] | None:
    """Fit a ladder of runs (each with `name`, `parameters`, `tokens`, `flops` and `metric`), smallest first, and say what comes next.

    Returns None for fewer than three sizes. `next` goes one rung up: parameters and FLOPs grow as on the last one.
    """
    by_flops = sorted((r for r in runs if r.get(metric) and r.get("flops")), key=lambda r: r["flops"])
    if len({r["parameters"] for r in by_flops}) < MIN_SIZES:
        return None
    flops, losses = [r["flops"] for r in by_flops], [r[metric] for r in by_flops]
    law = fit_power_law(flops, losses)
    out: dict[str, Any] = {"runs": by_flops, "metric": metric, "law": law, "next": None, "held_out": None}
    if law is not None:
        growth = flops[-1] / flops[-2]
        out["next"] = {"flops": flops[-1] * growth, "parameters": round(by_flops[-1]["parameters"] ** 2 / by_flops[-2]["parameters"]), metric: law.loss(flops[-1] * growth)}
    if len(by_flops) > MIN_SIZES and (earlier := fit_power_law(flops[:-1], losses[:-1])) is not None:
        out["held_out"] = {"predicted": earlier.loss(flops[-1]), "measured": losses[-1]}
    return out
