"""Layer norm and RMS norm (Zhang and Sennrich 2019) in the dtype of their input, quick in both directions on a CPU.

    norm = RMSNorm(256, eps=1e-6); y = norm(x)        # x * weight / sqrt(mean(x²) + eps) over the last dimension
    norm = make_norm(config)                          # the one that a model's config asks for

On a GPU RMS norm is torch's fused kernel. On a CPU torch runs its backward pass op by op, at twice the cost of the one
here, which is a tenth of a training step at width 256.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpipe.models.config import ModelConfig


def make_norm(config: ModelConfig, *, width: int = 0) -> nn.Module:
    """Make a norm over `width` features, by default the model's."""
    if config.norm == "rms":
        return RMSNorm(width or config.dim, eps=config.norm_eps)
    return LayerNorm(width or config.dim, eps=config.norm_eps, bias=config.bias)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps).to(x.dtype)  # autocast on a GPU answers in fp32


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)  # of another dtype it would keep torch off its fused kernels
        if x.device.type == "cpu" and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _RMSNorm.apply(x, weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, weight, scale)
        return unit * weight

    @staticmethod
    def backward(ctx, upstream: Tensor):
        """With u = x * scale and g = upstream * weight: dx = scale * (g - u * mean(g * u)), dweight = sum(upstream * u)."""
        unit, weight, scale = ctx.saved_tensors
        along = upstream * unit
        grad_weight = along.flatten(0, -2).sum(0, dtype=torch.promote_types(unit.dtype, torch.float32)).to(weight.dtype)
        mean = (along @ weight).div_(unit.shape[-1]).unsqueeze(-1)
        grad_x = torch.addcmul(upstream * weight, unit, mean, value=-1).mul_(scale)
        return grad_x, grad_weight, None
