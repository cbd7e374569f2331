"""Score a model on rows, documents or held-out tokens, beside baselines on the same data.

    llmpipe eval --model runs/pretrain --input runs/tokens --output runs/eval         # its valid part: bits per byte
    llmpipe eval --model runs/finetune --output runs/eval-part                        # a classifier on its own test split
    llmpipe eval --model runs/finetune --input test.jsonl.zst --output runs/eval-test

Writes `results.json` (one row a task, metric and system, each with n and a 95 % interval) and `samples/TASK.parquet` (a
row an example), which `llmpipe compare A B` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from llmpipe.finetune.label_rule import LabelRule
from llmpipe.work import Counts, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    tasks: list[str] | None = None
    """What to score (`llmpipe list tasks`); null: `classify` for a classifier, `language` for a language model."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of columns to the file's, such as {text: sentence}."""
    label_from: LabelRule | None = None
    """How documents get their labels, for a classifier."""
    baselines: bool = True
    """Score what the model has to beat too: compressors and a uniform model, or the majority class and a linear classifier."""
    max_documents: int | None = 5_000
    """Score at most so many documents of a language modelling set, drawn by a hash of their id; null: all."""
    by: list[Literal["language", "source"]] = field(default_factory=lambda: ["language", "source"])
    """Give bits per byte for each value of these columns too, where there are several."""
    window: int | None = None
    """Tokens of context in language modelling; null: as many as the model takes."""
    stride: int | None = None
    """Tokens by which the window moves, so every token has at least window - stride before it; null: half the window."""
    draws: int = 1_000
    """Resamples of a 95 % interval; 0: no intervals."""
    seed: int = 1337
    """Of the resamples."""
    batch_tokens: int = 8192
    """Padded tokens in memory at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride {self.stride} is not positive")
        if self.window is not None and self.window < 2:
            raise ValueError(f"window {self.window} is less than 2")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride {self.stride} is more than window {self.window}: tokens would be left out")
        for name in ("draws", "batch_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is negative")


def resolve(config: Config) -> Config:
    from llmpipe.models.device import choose_device

    return replace(config, device=choose_device(config.device))


def run(config: Config, work: Work) -> Counts:
    from llmpipe.evaluate.runs import evaluate

    return evaluate(config, work)
