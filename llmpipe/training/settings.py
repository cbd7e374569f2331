"""The settings of optimizers and schedules, apart from the code that needs torch: configs are read without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    embed_lr: float | None = None
    """With muon: AdamW's rate for embeddings, head and norms; null: by model size, as for adamw, and at most 2e-3 for bert."""
    weight_decay: float = 0.1
    """On matrices; embeddings and norms have none."""
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    """Muon's."""
    eps: float = 1e-8
    """AdamW's."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    l1: float = 0.0
    """Penalty on the sum of the matrices' absolute values, added to their gradients; the reported loss is without it."""
    l2: float = 0.0
    """The same with half the sum of squares. Weight decay, which the moments don't see, is usually better."""

    def __post_init__(self) -> None:
        for name in ("weight_decay", "clip_norm", "l1", "l2"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["wsd", "cosine", "linear"] = "wsd"
    """wsd: warm up, stay, then fall linearly (a run can be extended from before the fall). cosine, linear: fall all the way."""
    warmup: float = 0.02
    """Share of the steps over which the rate rises."""
    decay: float = 0.5
    """wsd: share of the steps over which it falls."""
    final: float = 0.0
    """Where it ends, as a share of the peak."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1 or not 0 <= self.decay <= 1 or (self.kind == "wsd" and self.warmup + self.decay > 1):
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are shares of the run, and together at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """How much of a text the objectives mlm and span hide."""

    rate: float | None = None
    """Share of the tokens; null: 0.3 for mlm (evaluations always hide 0.15), 0.15 for span."""
    mean_span: float = 3.0
    """span: tokens of a removed span, on average."""

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < 1:
            raise ValueError(f"rate {self.rate} is not between 0 and 1")
        if self.mean_span < 1:
            raise ValueError(f"mean_span {self.mean_span} is below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """What is added to the cross-entropy in training; evaluations never have it."""

    label_smoothing: float = 0.0
    """Share of a target's weight that is spread evenly over the vocabulary (Szegedy et al. 2016)."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting (PaLM: 1e-4)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or self.z_loss < 0:
            raise ValueError(f"label_smoothing {self.label_smoothing} is a share below 1, and z_loss {self.z_loss} not below 0")


PRICES = {"H100": 3.0, "A100": 1.8, "L40S": 0.9, "4090": 0.5, "T4": 0.35}


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig:
    """What `--dry-run` assumes beside what it measures. None of it touches a result."""

    usd_per_hour: dict[str, float] = field(default_factory=lambda: dict(PRICES))
    """Rent of one device an hour. Assumptions of autumn 2026: put in what you pay; `this` prices the machine at hand."""
    mfu: float = 0.4
    """Share of a GPU's peak that training reaches, for devices that are not at hand."""
    grid_g_per_kwh: float | None = None
    """Grams of CO2 a kWh of your grid; null: no CO2. About 30 in Norway, 60 in France, 370 in the USA, 560 in China."""
    overhead: float = 1.2
    """Power of the whole site for one watt of the device (PUE)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    by: Literal["input", "source", "language"] = "input"
    """What tells sources apart: the directories given as --input (by their names), or what their documents say in `source`
    or `language` (zh of zh-Hant; `unknown` where nothing is said)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of the tokens that each source gets, in any unit; 0 leaves one out. Empty: by size and temperature."""
    temperature: float = 1.0
    """Without weights: a source gets tokens ** (1 / temperature). 1: as they are; 3.3 raises small ones as mT5 does; 1000: all alike."""
    max_epochs: dict[str, float] = field(default_factory=dict)
    """How often a source may be seen over the whole run, to within a few samples; what that frees goes to the others."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} is not above 0")
        for name, weight in self.weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights.{name} {weight} is not a number from 0 up")
        for name, cap in self.max_epochs.items():
            if not cap > 0:
                raise ValueError(f"max_epochs.{name} {cap} is not above 0; weights can leave a source out")
        if self.weights and self.temperature != 1.0:
            raise ValueError("weights and temperature: give one of them")
