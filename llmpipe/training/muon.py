"""Muon (Jordan et al. 2024) for weights that may be sharded, orthogonalising in the dtype that training computes in.

    optimizer = Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1, dtype=torch.bfloat16)

In bf16 on whole weights it takes the very steps of torch.optim.Muon. That one always multiplies in bf16, which a CPU
without it emulates and which turns the last bit of a gradient into a thousandth of a loss; and it lets each product of
sharded matrices communicate, where one gathering of the matrix is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmpipe.training.parallel import whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that drives all singular values towards 1, between about 0.7 and 1.2 after five rounds."""
ROUNDS = 5
EPS = 1e-7


class Muon(torch.optim.Muon):
    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="original")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move each matrix along its orthogonalised momentum (Nesterov's), a tall one by more."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p]["momentum_buffer"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonalize(whole(p.grad.lerp(momentum, group["momentum"])), dtype=self.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(_like(direction, p), alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def orthogonalize(matrix: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of a matrix near 1, by five rounds of Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype, copy=True)
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=EPS))  # no singular value above 1
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _like(full: Tensor, p: Tensor) -> Tensor:
    """Cut a whole tensor as `p` is; each process keeps its part, nothing is sent."""
    if not hasattr(p, "device_mesh"):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.contiguous().to(p.dtype), p.device_mesh, p.placements, src_data_rank=None)
