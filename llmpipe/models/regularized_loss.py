"""Cross-entropy with label smoothing and z-loss: what training may minimise instead of the plain one.

    loss = regularized_cross_entropy(hidden, weight, targets, label_smoothing=0.1, z_loss=1e-4)       # summed, as linear_cross_entropy is

Chunks of tokens are computed again in the backward pass, so that all logits are never there at once. Plain
cross-entropy is quicker in models/linear_loss.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llmpipe.models.linear_loss import CHUNK_ELEMENTS_CPU, CHUNK_ELEMENTS_GPU, IGNORE


def regularized_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, label_smoothing: float, z_loss: float, bias: Tensor | None = None) -> Tensor:
    """Sum over targets y that are not IGNORE, with logits z, lse = log sum exp z and e = label_smoothing:

    (1 - e) (lse - z[y]) + e (lse - mean z) + z_loss lse². Shapes: (…, C), (V, C), (…), (V,).
    """
    x, wanted = hidden.flatten(0, -2), targets.flatten()
    size = max(1, (CHUNK_ELEMENTS_CPU if x.device.type == "cpu" else CHUNK_ELEMENTS_GPU) // weight.shape[0])
    parts = [checkpoint(_chunk, x[i : i + size], weight, bias, wanted[i : i + size], label_smoothing, z_loss, use_reentrant=False) for i in range(0, len(x), size)]
    return torch.stack(parts).sum()


def _chunk(x: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor, smoothing: float, z_loss: float) -> Tensor:
    logits = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)).float()
    lse = logits.logsumexp(-1)
    chosen = logits.gather(-1, wanted.clamp(min=0)[:, None])[:, 0]
    loss = lse - (1 - smoothing) * chosen - smoothing * logits.mean(-1) + z_loss * lse.square()
    return (loss * (wanted != IGNORE)).sum()
