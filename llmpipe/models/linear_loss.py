"""Head and cross-entropy in one step that never holds all logits and computes each gradient once.

    loss = linear_cross_entropy(hidden, weight, targets)       # summed over targets that are not IGNORE

The logits of a chunk of tokens become, in place, the gradient with respect to them, and are dropped. Against
`cross_entropy(F.linear(…))` that saves the fp32 copy of the logits, their log-softmax and a pass over both.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100
"""The target of a token that does not count."""

# Logits of one chunk. 16 MB in bf16 stay near the cores' caches on a CPU; a GPU wants fewer, larger launches.
CHUNK_ELEMENTS_CPU = 1 << 22
CHUNK_ELEMENTS_GPU = 1 << 28


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return sum(-log softmax(hidden @ weight.T)[targets]) as an fp32 scalar; differentiable in `hidden` and `weight`.

    `hidden` (…, C), `weight` (V, C), `targets` (…). Matrix products run in the autocast dtype, sums in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten(), dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        x, w = hidden.to(dtype), weight.to(dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(x) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        limit = CHUNK_ELEMENTS_CPU if x.device.type == "cpu" else CHUNK_ELEMENTS_GPU
        size = max(1, limit // w.shape[0])
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, x.shape[0], size):
            part, wanted = x[start : start + size], targets[start : start + size]
            counts = (wanted != IGNORE).unsqueeze(1)
            index = wanted.clamp(min=0).unsqueeze(1)
            logits = part @ w.T
            norm = torch.logsumexp(logits.float(), dim=1, keepdim=True)
            loss += ((norm - logits.gather(1, index).float()) * counts).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad = torch.exp(logits.float().sub_(norm)).mul_(counts).to(dtype)  # softmax
            grad.scatter_add_(1, index, -counts.to(dtype))  # minus the one-hot target
            if grad_hidden is not None:
                torch.mm(grad, w, out=grad_hidden[start : start + size])
            if grad_weight is not None:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * upstream).to(hidden_dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * upstream).to(weight_dtype)
        return grad_hidden, grad_weight, None, None
