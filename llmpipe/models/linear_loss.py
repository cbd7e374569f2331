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

# Logits of one chunk. Smaller than 8 MB in bf16, adding up the weight's gradient shows; larger gains nothing. GPUs want few launches.
CHUNK_ELEMENTS_CPU = 1 << 22
CHUNK_ELEMENTS_GPU = 1 << 28
TINY = 1e-38  # probabilities below it underflow in fp32 and bf16; a loss is at most 87.5 nats


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """Return sum(-log softmax(hidden @ weight.T + bias)[targets]) as an fp32 scalar; differentiable in all but `targets`.

    `hidden` (…, C), `weight` (V, C), `bias` (V,), `targets` (…). Matrix products run in the autocast dtype, sums in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, bias, targets.flatten(), dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype) -> Tensor:
        x, w = hidden.to(dtype), weight.to(dtype)
        shift = None if bias is None else bias.to(dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(x) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        limit = CHUNK_ELEMENTS_CPU if x.device.type == "cpu" else CHUNK_ELEMENTS_GPU
        size = max(1, limit // w.shape[0])
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, x.shape[0], size):
            part, wanted = x[start : start + size], targets[start : start + size]
            counted = wanted != IGNORE
            p = torch.softmax(part @ w.T if shift is None else torch.addmm(shift, part, w.T), dim=1)  # sums run in fp32 inside; p's rounding is 0.002 nats a token in bf16
            flat = p.view(-1)
            places = torch.arange(len(p), device=p.device) * p.shape[1] + wanted.clamp(min=0)  # gather and scatter pass over all of p
            chosen = flat[places]
            loss -= (chosen.float().clamp(min=TINY).log() * counted).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            flat[places] = chosen - 1
            p.mul_(counted.unsqueeze(1))  # now it is the gradient with respect to the logits
            if grad_hidden is not None:
                torch.mm(p, w, out=grad_hidden[start : start + size])
            if grad_weight is not None:
                grad_weight += p.T @ part
            if grad_bias is not None:
                grad_bias += p.sum(0, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor):
        grads = (None if g is None else (g * upstream).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return *grads, None, None
