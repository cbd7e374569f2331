"""Optimizers and schedules: AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    optimizers = make_optimizers(model, OptimizerConfig(), name="muon", lr=0.02)
    set_lr(optimizers, schedule(step, ScheduleConfig(), steps=500))

Muon (Jordan et al. 2024) orthogonalises a matrix's momentum before the step: GPT-2-small reaches a given loss in about
two thirds of AdamW's steps. Embeddings, head and norms are not matrices between two hidden layers and keep AdamW.
Both work on weights that FSDP2 has sharded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmpipe.training.muon import Muon
from llmpipe.training.parallel import blocks
from llmpipe.training.settings import OptimizerConfig, ScheduleConfig


def schedule(step: int, config: ScheduleConfig, *, steps: int) -> float:
    """Return the factor of the peak rate for step 0, 1, …, steps - 1."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if config.kind == "cosine":
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.kind == "linear":
        return config.final + (1 - config.final) * (1 - progress)
    fall = max(1, round(config.decay * steps))
    return config.final + (1 - config.final) * min(1.0, (steps - step) / fall)


def default_lr(name: str, num_params: int) -> float:
    """Peak rate: Muon's hardly depends on size; AdamW's falls with its cube root (the OLMo ladder: 6.5e-3 at 5M, 2.2e-3 at 124M)."""
    return 0.02 if name == "muon" else 0.5 * 0.0047 * (num_params / 108e6) ** (-1 / 3)


def matrices_of(model: nn.Module) -> list[Tensor]:
    """The weights between two hidden layers: of two dimensions, in a block, and no table that is looked up."""
    found: dict[int, Tensor] = {}
    for block in blocks(model):
        for module in block.modules():
            if not isinstance(module, nn.Embedding):
                found.update((id(p), p) for p in module.parameters(recurse=False) if p.ndim == 2)
    return list(found.values())


def make_optimizers(model: nn.Module, config: OptimizerConfig, *, name: str, lr: float, dtype: str = "bf16") -> list[torch.optim.Optimizer]:
    """Make the optimizers with all their state in place, so that a checkpoint has the same tensors at any step.

    `dtype` is what training computes in, and Muon too. Weight decay is for matrices; embeddings, norms and biases have none. Shard the model first: the moments are made alike.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    inner = {id(p) for p in matrices_of(model)}
    matrices = [p for _, p in named if id(p) in inner]
    others = [p for _, p in named if id(p) not in inner]
    adam_lr = lr if name == "adamw" else config.embed_lr or default_lr("adamw", sum(p.numel() for _, p in named))
    groups = [{"params": others, "lr": adam_lr, "weight_decay": 0.0}]
    if name == "adamw":
        groups.append({"params": matrices, "lr": lr, "weight_decay": config.weight_decay})
    groups = [g for g in groups if g["params"]]  # a group without parameters cannot be saved
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True))
    if name == "muon" and matrices:
        low = torch.float32 if dtype == "fp32" else torch.bfloat16
        optimizers.append(Muon(matrices, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum, dtype=low))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
            for p in group["params"]:
                optimizer.state[p] = _fresh_state(optimizer, p)
    return optimizers


def _fresh_state(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": torch.zeros_like(p)}
    return {"step": torch.zeros((), dtype=torch.float32, device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Scale every group's rate; return the matrices' one, which is what the metrics show."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
    return optimizers[-1].param_groups[-1]["lr"]


@torch.no_grad()
def add_penalties(matrices: list[Tensor], *, l1: float, l2: float) -> None:
    """Add the gradient of l1 x |w| + l2/2 x w² to the matrices' gradients. Unlike weight decay it passes through the moments."""
    for p in matrices:
        if p.grad is not None:
            if l2:
                p.grad.add_(p, alpha=l2)
            if l1:
                p.grad.add_(p.sign(), alpha=l1)


def flat_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Name every tensor that makes up the state of training: `model.<parameter>`, `optim.<parameter>.<moment>`. No copies."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                tensors.update({f"optim.{names[id(p)]}.{key}": value for key, value in optimizer.state[p].items()})
    return tensors
