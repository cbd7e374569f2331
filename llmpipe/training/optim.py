"""Optimizers and schedules: AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    optimizers = make_optimizers(model, OptimizerConfig(), name="muon", lr=0.02)
    set_lr(optimizers, schedule(step, ScheduleConfig(), steps=500))

Muon (Jordan et al. 2024) orthogonalises a matrix's momentum before the step: GPT-2-small reaches a given loss in about
two thirds of AdamW's steps. Embeddings, head and norms are not matrices between two hidden layers and keep AdamW.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmpipe.training.settings import OptimizerConfig, ScheduleConfig


def schedule(step: int, config: ScheduleConfig, *, steps: int) -> float:
    """Return the factor of the peak rate for step 0, 1, …, steps - 1."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    if config.kind == "cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    fall = max(1, round(config.decay * steps))
    return config.final + (1 - config.final) * min(1.0, (steps - step) / fall)


def default_lr(name: str, num_params: int) -> float:
    """Peak rate: Muon's hardly depends on size; AdamW's falls with its cube root (the OLMo ladder: 6.5e-3 at 5M, 2.2e-3 at 124M)."""
    return 0.02 if name == "muon" else 0.5 * 0.0047 * (num_params / 108e6) ** (-1 / 3)


def make_optimizers(model: nn.Module, config: OptimizerConfig, *, name: str, lr: float) -> list[torch.optim.Optimizer]:
    """Make the optimizers with all their state in place, so that a checkpoint has the same tensors at any step."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and ".layers." in f".{n}"]
    inner = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in inner]
    adam_lr = lr if name == "adamw" else config.embed_lr or default_lr("adamw", sum(p.numel() for _, p in named))
    groups = [{"params": others, "lr": adam_lr, "weight_decay": 0.0}]
    if name == "adamw":
        groups.append({"params": matrices, "lr": lr, "weight_decay": config.weight_decay})
    adamw = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=1e-8, fused=True)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if name == "muon":
        optimizers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum, adjust_lr_fn="original"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
            for p in group["params"]:
                optimizer.state[p] = _fresh_state(optimizer, p)
    return optimizers


def _fresh_state(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Tensor]:
    if isinstance(optimizer, torch.optim.Muon):
        return {"momentum_buffer": torch.zeros_like(p)}
    return {"step": torch.zeros((), dtype=torch.float32, device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Scale every group's rate; return the matrices' one, which is what the metrics show."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
    return optimizers[-1].param_groups[-1]["lr"]


def flat_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Name every tensor that makes up the state of training: `model.<parameter>`, `optim.<parameter>.<moment>`. No copies."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                tensors.update({f"optim.{names[id(p)]}.{key}": value for key, value in optimizer.state[p].items()})
    return tensors
