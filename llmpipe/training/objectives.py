"""What a model is trained to do: how windows of tokens become a batch, and the loss on it.

    objective = OBJECTIVES["clm"]()
    batch = objective.batch(windows)             # windows: (B, objective.window(seq_len)) of token ids
    summed = objective.loss(model, batch)        # divided by batch.count, over all micro-batches of a step, by the loop
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from llmpipe.models.linear_loss import IGNORE


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T), IGNORE where there is none

    @property
    def count(self) -> int:
        return int((self.targets != IGNORE).sum())

    def to(self, device: str) -> Batch:
        if device == "cpu":
            return self
        return Batch(*(t.pin_memory().to(device, non_blocking=True) for t in (self.ids, self.targets)))


@dataclass(frozen=True, slots=True)
class CausalLM:
    """Predict each token from those before it."""

    def window(self, seq_len: int) -> int:
        return seq_len + 1

    def batch(self, windows: np.ndarray) -> Batch:
        tokens = torch.from_numpy(windows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum the cross-entropy over the batch's targets."""
        return model(batch.ids, batch.targets)


OBJECTIVES: dict[str, type[CausalLM]] = {"clm": CausalLM}
