"""The finetuning loop: batches by seed and step, one division a batch, the best state kept, exact resume.

    result = train(task, model, examples, plan, evaluate=…, folder=output / "checkpoints" / "seed-1337", log=…)

Reads and writes its checkpoints in `folder`, at every evaluation. Which examples make up step k is a function of seed
and k, so a killed run goes on to the very result of an uninterrupted one on the same machine and threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmpipe.errors import LlmpipeError
from llmpipe.finetune.task import Example, LossSettings, Task, by_length
from llmpipe.training.checkpoint import load_latest, save
from llmpipe.training.compute import autocast


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the loop does, all of it derived from config and data before it starts."""

    steps: int
    batch_size: int
    evaluate_every: int
    patience: int
    """Evaluations without a new best after which it stops; 0: never."""
    metric: str
    lower_is_better: bool
    lr: float
    head_lr: float
    warmup_steps: int
    min_lr: float
    """As a share of the peak."""
    weight_decay: float
    clip: float
    micro_batch_tokens: int
    seed: int
    device: str
    dtype: str
    pad: int
    loss: LossSettings
    log_every: int


@dataclass(slots=True)
class Best:
    """The best evaluation so far. What is not a number never wins."""

    value: float = math.nan
    step: int = 0
    waited: int = 0

    def offer(self, value: float, step: int, *, lower_is_better: bool) -> bool:
        """Take `value` if it is better; say whether it was."""
        better = math.isfinite(value) and (not math.isfinite(self.value) or (value < self.value if lower_is_better else value > self.value))
        if better:
            self.value, self.step, self.waited = value, step, 0
        else:
            self.waited += 1
        return better


@dataclass(frozen=True, slots=True)
class Result:
    best: Best
    steps: int
    stopped_early: bool


def train(
    task: Task, model: nn.Module, examples: Sequence[Example], plan: Plan, *, evaluate: Callable[[], dict[str, float]], folder: Path, log: Callable[[dict[str, Any]], None], rewind: Callable[[int], None]
) -> Result:
    """Train `model` in place and leave it with its best weights.

    `evaluate()` scores the current weights; `log` takes one line of metrics; `rewind(step)` forgets the lines after a
    step, when the loop goes on from a checkpoint. Raises `LlmpipeError` when the loss is not finite.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(trained, plan)
    best, best_weights, start = Best(), {name: p.detach().clone() for name, p in trained.items()}, 0
    tensors = _tensors(trained, optimizer, best_weights)  # the live ones: a checkpoint is loaded into them
    if (found := load_latest(folder, tensors)) is not None:
        start, best = found["step"], Best(**found["best"])
    rewind(start)
    model.train()
    seen_tokens, began = 0, time.monotonic()
    step, stopped = start, bool(plan.patience and best.waited >= plan.patience)
    while step < plan.steps and not stopped:
        batch = [examples[i] for i in batch_indices(len(examples), plan, step)]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule(step, plan)
        torch.manual_seed(plan.seed * 1_000_003 + step)  # dropout
        loss = accumulate(task, model, batch, plan)
        norm = nn.utils.clip_grad_norm_(trained.values(), plan.clip or math.inf).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise LlmpipeError(f"step {step + 1}: the loss is {loss}, its gradient {norm}", hint="a lower lr helps; the best weights so far lie in the last checkpoint")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seen_tokens += sum(len(e.ids) for e in batch)
        evaluating = step % plan.evaluate_every == 0 or step == plan.steps
        line: dict[str, Any] = {"step": step, "epoch": round(step * plan.batch_size / len(examples), 4), "loss": loss, "lr": plan.lr * schedule(step - 1, plan), "grad_norm": norm}
        if evaluating:
            model.eval()
            with autocast(plan.device, plan.dtype):
                scores = evaluate()
            model.train()
            line |= {f"val_{k}": v for k, v in scores.items()}
            if best.offer(scores[plan.metric], step, lower_is_better=plan.lower_is_better):
                for name, p in trained.items():
                    best_weights[name].copy_(p.detach())
            stopped = bool(plan.patience and best.waited >= plan.patience)
        if evaluating or step % plan.log_every == 0 or step == 1:
            log({**line, "tokens_per_s": round(seen_tokens / (time.monotonic() - began), 1)})
        if evaluating:
            save(folder, step=step, tensors=tensors, state={"best": {"value": best.value, "step": best.step, "waited": best.waited}})
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(best_weights[name])
    model.eval()
    return Result(best, step, stopped and step < plan.steps)


def batch_indices(num_examples: int, plan: Plan, step: int) -> np.ndarray:
    """Return which examples make up a step: consecutive places of one long sequence of shuffled epochs."""
    first, out = step * plan.batch_size, []
    while len(out) < plan.batch_size:
        epoch, place = divmod(first + len(out), num_examples)
        order = np.random.default_rng([plan.seed, 7, epoch]).permutation(num_examples)
        out += order[place : place + plan.batch_size - len(out)].tolist()
    return np.array(out)


def accumulate(task: Task, model: nn.Module, batch: Sequence[Example], plan: Plan) -> float:
    """Add up gradients over micro-batches of like length and divide once, by all targets of the batch. Returns the loss."""
    total, divisor = 0.0, 0.0
    for micro in micro_batches(batch, plan.micro_batch_tokens):
        with autocast(plan.device, plan.dtype):
            summed, count = task.loss(model, task.collate(micro, plan.pad).to(plan.device), plan.loss)
        summed.backward()
        total, divisor = total + summed.item(), divisor + float(count)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.div_(divisor)
    return total / divisor


def micro_batches(batch: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    for chosen in by_length([len(e.ids) for e in batch], tokens):
        yield [batch[i] for i in chosen]


def schedule(step: int, plan: Plan) -> float:
    """Share of the peak learning rate: linear warm-up, then linear decay to `min_lr`."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    left = (plan.steps - step) / max(1, plan.steps - plan.warmup_steps)
    return plan.min_lr + (1 - plan.min_lr) * left


def make_optimizer(trained: dict[str, Tensor], plan: Plan) -> torch.optim.AdamW:
    """AdamW. The head, drawn at random, learns faster than the pretrained body; vectors and embeddings don't decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, p in trained.items():
        lr = plan.head_lr if name.startswith("score.") else plan.lr
        decay = plan.weight_decay if p.ndim == 2 and "embed" not in name and "lora" not in name else 0.0
        groups.setdefault((lr, decay), []).append(p)
    optimizer = torch.optim.AdamW([{"params": ps, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), ps in groups.items()], betas=(0.9, 0.98), eps=1e-8, fused=True)
    for p in trained.values():  # all state from the start, so that every checkpoint has the same tensors
        optimizer.state[p] = {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def _tensors(trained: dict[str, Tensor], optimizer: torch.optim.Optimizer, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name all that a checkpoint holds: what is trained, its best state so far, its moments. No copies."""
    moments = {f"optim.{name}.{key}": value for name, p in trained.items() for key, value in optimizer.state[p].items()}
    return {f"model.{name}": p.detach() for name, p in trained.items()} | {f"best.{name}": t for name, t in best.items()} | moments
