"""Finetune a model for a task on labelled rows, or on documents that carry their label.

    llmpipe finetune --model runs/pretrain --input reviews.jsonl.zst --output runs/reviews --set epochs=3
    llmpipe finetune --model runs/pretrain --input runs/dedup --output runs/part --config configs/finetune/label_from_url.yaml

Reads rows (text,label or text,text_pair,label) or documents with `label_from`. Writes a directory that
AutoModelForSequenceClassification loads, `splits/{train,valid,test}.parquet` (what eval scores without an --input),
`metrics.jsonl`, `checkpoints/` (to go on after a kill) and, with LoRA, `adapter/` in PEFT's layout beside the merged model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from llmpipe.config import cosmetic
from llmpipe.finetune.label_rule import LabelRule
from llmpipe.work import Counts, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    rank: int = 0
    """Rank of the update of each matrix; 0 trains all weights instead. 16 is a good start."""
    alpha: float | None = None
    """The update is scaled by alpha / rank; null: 2 x rank."""
    dropout: float = 0.05
    """On the adapter's input, in training."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    """Which linear layers of a block get an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    task: Literal["classify"] = "classify"
    """What to train for; `llmpipe list tasks` explains."""
    valid: Path | None = None
    """Rows to choose the best weights by; null: `valid_fraction` of the input."""
    label_from: LabelRule | None = None
    """How documents get their labels, when the input is documents."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our names of columns to the file's, such as {text: sentence}."""
    valid_fraction: float = 0.1
    """Share of the input kept for choosing the best weights, by a hash of the text (of the document, with label_from)."""
    test_fraction: float | None = None
    """Share of the input kept aside for eval, likewise; null: 0.1, or 0 with `valid`."""
    max_train_examples: int | None = None
    """Use only so many training rows, drawn by the seed; null: all."""
    max_dropped: float = 0.05
    """Stop when a larger share of the rows has no text or no label."""
    max_length: int = 256
    """Tokens of a text that are read; the rest is cut off and counted as truncated."""
    lora: LoRA = field(default_factory=LoRA)
    epochs: float = 3.0
    lr: float | None = None
    """Peak learning rate of the body; null: 5e-4 below 30 M parameters, 5e-5 above; with LoRA 2e-3 and 2e-4."""
    head_lr_factor: float = 10.0
    """The head, drawn at random, learns so many times faster."""
    batch_size: int = 16
    """Examples a step."""
    micro_batch_tokens: int = 8192
    """Padded tokens in memory at a time; gradients are added up over micro-batches and divided once."""
    warmup_fraction: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class by the inverse of its frequency."""
    label_smoothing: float = 0.0
    evaluations_per_epoch: int = 2
    metric: Literal["macro_f1", "accuracy", "loss"] = "macro_f1"
    """What on the valid part decides which weights are best."""
    patience: int = 4
    """Stop after so many evaluations without a new best; 0: never."""
    seed: int = 1337
    seeds: int = 1
    """Runs with seed, seed + 1, …: the best by `metric` is kept, mean and standard deviation of all are reported."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes in it, else fp32. Weights and optimizer are fp32 always."""
    threads: int = 0
    """CPU threads; 0: one per physical core."""
    log_every: int = cosmetic(5)

    def __post_init__(self) -> None:
        for name in ("valid_fraction", "test_fraction"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 0.5:
                raise ValueError(f"{name} {value} is not in [0, 0.5)")
        for name in ("epochs", "batch_size", "max_length", "micro_batch_tokens", "evaluations_per_epoch", "seeds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr {self.lr} is not positive")
        if self.lora.rank < 0:
            raise ValueError(f"lora.rank {self.lora.rank} is negative")


def resolve(config: Config) -> Config:
    """Settle device, arithmetic and threads, which change the result."""
    from llmpipe.models.device import bf16_is_fast, choose_device
    from llmpipe.training.compute import physical_cores

    device = choose_device(config.device)
    dtype = ("bf16" if bf16_is_fast(device) else "fp32") if config.dtype == "auto" else config.dtype
    return replace(config, device=device, dtype=dtype, threads=config.threads or physical_cores())


def run(config: Config, work: Work) -> Counts:
    from llmpipe.finetune import examples
    from llmpipe.finetune.runs import finetune
    from llmpipe.training import compute

    compute.prepare(device=config.device, threads=config.threads)
    data = examples.prepare(config, work)
    finetune(config, work, data)
    return data.counts
