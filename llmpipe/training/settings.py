"""The settings of optimizers and schedules, apart from the code that needs torch: configs are read without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    embed_lr: float | None = None
    """With muon: AdamW's rate for embeddings, head and norms; null: by model size, as for adamw."""
    weight_decay: float = 0.1
    """On matrices; embeddings and norms have none."""
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    """Muon's."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["wsd", "cosine"] = "wsd"
    """wsd: warm up, stay, then fall linearly (a run can be extended from before the fall). cosine: fall all the way."""
    warmup: float = 0.02
    """Share of the steps over which the rate rises."""
    decay: float = 0.5
    """wsd: share of the steps over which it falls."""
    final: float = 0.0
    """Where it ends, as a share of the peak."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1 or not 0 <= self.decay <= 1 or self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are shares of the run, and together at most 1")
