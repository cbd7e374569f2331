"""The training loop: batches, gradients, steps; checkpoints, evaluations, signals; exact to resume.

    final = train(run)              # a Run says what to train on what; the same Run goes on where it was killed

The whole state of a run is its tensors (training/checkpoint.py) and a `State` of a few numbers. Every step is a function
of that state, so a run that was killed ends with the same bits as one that was not, on the same machine and threads.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmpipe.errors import LlmpipeError, Terminated
from llmpipe.log import log
from llmpipe.training import checkpoint
from llmpipe.training.batches import MixedSamples, Samples, step_samples
from llmpipe.training.compute import autocast
from llmpipe.training.metrics import Metrics
from llmpipe.training.objectives import Batch, CausalLM
from llmpipe.training.optim import flat_tensors, set_lr

FIRST_CHECKPOINT = 5  # a full disk or a missing right shows in the first minute, not after an hour
MAX_SKIPPED = 3  # non-finite steps in a row; one is chance, four are divergence
AUTO_CHECKPOINT_S = 120.0
AUTO_CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into checkpoints whose interval is left to us


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that a training run is made of."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    samples: Samples | MixedSamples
    objective: CausalLM
    steps: int
    batch_size: int
    """Sequences a step, over all processes."""
    micro_batch: int
    """Sequences a forward pass."""
    schedule: Callable[[int], float]
    clip_norm: float
    device: str
    dtype: str
    output: Path
    log_every: int = 5
    eval_every: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    max_hours: float | None = None
    flops_per_token: float = 0.0
    peak_flops: float | None = None
    evaluate: Callable[[], dict[str, float]] | None = None
    progress: Callable[..., None] = field(default=lambda *_, **__: None)


@dataclass(slots=True, kw_only=True)
class State:
    """All of a run's state that is not a tensor."""

    step: int = 0
    loss_sum: float = 0.0
    """Of the steps since the last log line, with how many they are."""
    loss_steps: int = 0
    grad_norm: float = 0.0
    lr: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    """The latest one."""


def train(run: Run) -> State:
    """Train to the last step, from the newest checkpoint if there is one.

    Raises `Terminated` on SIGTERM or after `max_hours` and `KeyboardInterrupt` on Ctrl-C, both with the state saved, and
    `LlmpipeError` when the loss stays non-finite; earlier checkpoints are then still there.
    """
    tensors = flat_tensors(run.model, run.optimizers)
    saved = checkpoint.load_latest(run.output / "checkpoints", tensors)
    state = State(**{k: saved[k] for k in State.__dataclass_fields__}) if saved else State()
    if saved:
        log.info("going on at step %d of %d", state.step, run.steps)
    metrics = Metrics(run.output / "metrics.jsonl", after=state.step)
    if _log_due(run, state.step) and metrics.last_step == state.step:  # killed between this step's line and the next checkpoint
        state.loss_sum, state.loss_steps = 0.0, 0
        state.evaluation = {k: v for k, v in metrics.last.items() if k.startswith("val_")}
    clock = _Clock(state.step)
    try:
        with _signals() as caught:
            while True:
                if _log_due(run, state.step) and metrics.last_step < state.step:
                    _report(run, state, metrics, clock)
                if state.step >= run.steps:
                    return state
                step(run, state)
                if _checkpoint_due(run, state, clock) or caught or clock.hours > (run.max_hours or math.inf):
                    with clock.checkpoint():
                        checkpoint.save(run.output / "checkpoints", step=state.step, tensors=tensors, state=asdict(state), keep=run.keep)
                    _leave(run, state, caught, clock)
    finally:
        metrics.close()


def step(run: Run, state: State) -> None:
    """Take one optimizer step; leave weights and moments alone if its loss or gradient is not finite."""
    numbers = step_samples(step=state.step, batch_size=run.batch_size)
    batches = [run.objective.batch(run.samples.windows(numbers[i : i + run.micro_batch])) for i in range(0, len(numbers), run.micro_batch)]
    count = sum(b.count for b in batches)  # one divisor for all micro-batches: a mean of means weighs short ones too much
    run.model.train()
    summed = sum(_backward(run, b.to(run.device), count) for b in batches)
    norm = _clip(run)
    state.lr = set_lr(run.optimizers, run.schedule(state.step))
    loss = float(summed) / count
    if math.isfinite(loss) and math.isfinite(norm):
        for optimizer in run.optimizers:
            optimizer.step()
        state.loss_sum += loss
        state.loss_steps += 1
        state.grad_norm = norm
        state.skipped_in_row = 0
    else:
        state.skipped += 1
        state.skipped_in_row += 1
        log.warning("step %d: loss %s, gradient norm %s; the step is skipped (samples %d to %d)", state.step + 1, loss, norm, numbers[0], numbers[-1])
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if state.skipped_in_row > MAX_SKIPPED:
        raise LlmpipeError(
            f"the loss is not finite at step {state.step}, for the {state.skipped_in_row}th time in a row (samples {numbers[0]} to {numbers[-1]} of this step)",
            hint="the last finite checkpoint is kept; a smaller lr or a longer schedule.warmup usually helps",
        )


def _backward(run: Run, batch: Batch, count: int) -> Tensor:
    with autocast(run.device, run.dtype):
        summed = run.objective.loss(run.model, batch)
    (summed / count).backward()
    return summed.detach()


def _clip(run: Run) -> float:
    """Scale gradients down to `clip_norm` together; return the norm before."""
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), run.clip_norm or math.inf, foreach=True)
    return float(norm)


# --- what is due when -----------------------------------------------------------------------------------------------


def _log_due(run: Run, step: int) -> bool:
    return step > 0 and (step % run.log_every == 0 or _eval_due(run, step) or step == run.steps)


def _eval_due(run: Run, step: int) -> bool:
    return run.evaluate is not None and (step == run.steps or (run.eval_every > 0 and step % run.eval_every == 0))


def _checkpoint_due(run: Run, state: State, clock: _Clock) -> bool:
    """Checkpoints never change a result, so their instants may depend on time. None while steps are being skipped, but at the end."""
    if state.step == run.steps:
        return True
    if state.skipped_in_row:
        return False
    if run.checkpoint_every:
        return state.step % run.checkpoint_every == 0 or state.step == min(FIRST_CHECKPOINT, run.checkpoint_every)
    return state.step == FIRST_CHECKPOINT or clock.since_checkpoint > max(AUTO_CHECKPOINT_S, clock.checkpoint_s / AUTO_CHECKPOINT_SHARE)


def _report(run: Run, state: State, metrics: Metrics, clock: _Clock) -> None:
    """Evaluate if that is due, and write the step's line. The checkpoint of this step, if any, lies on disk already."""
    tokens_per_step = run.batch_size * run.samples.stride
    speed = clock.tokens_per_s(state.step, tokens_per_step)
    record: dict[str, Any] = {
        "step": state.step,
        "tokens": state.step * tokens_per_step,
        "loss": state.loss_sum / state.loss_steps if state.loss_steps else math.nan,
        "lr": state.lr,
        "grad_norm": state.grad_norm,
        "tokens_per_s": round(speed, 1) if speed else None,
        "mfu": round(speed * run.flops_per_token / run.peak_flops, 4) if speed and run.peak_flops else None,
    }
    if sources := run.samples.counts(state.step * run.batch_size):
        record["samples_by_source"] = sources
    if _eval_due(run, state.step) and run.evaluate is not None:
        with clock.pause():
            state.evaluation = run.evaluate()
        record.update(state.evaluation)
    metrics.write(record)
    state.loss_sum, state.loss_steps = 0.0, 0
    shown = {k: record[k] for k in ("loss", "val_bpb", "tokens_per_s") if record.get(k) is not None}
    run.progress(state.step, run.steps, **shown)


def _leave(run: Run, state: State, caught: list[int], clock: _Clock) -> None:
    """Stop, now that the state is saved, if something asked for it; not when the last step is done anyway."""
    if state.step >= run.steps:
        return
    done = f"step {state.step} of {run.steps} is saved"
    if signal.SIGINT in caught:
        log.info("%s; the same command goes on from there", done)
        raise KeyboardInterrupt
    if caught:
        raise Terminated(f"stopped by SIGTERM; {done}", hint="the same command goes on from there")
    if run.max_hours is not None and clock.hours > run.max_hours:
        raise Terminated(f"max_hours {run.max_hours:g} are over; {done}", hint="the same command goes on from there")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and the first Ctrl-C for the end of the step; a second Ctrl-C interrupts at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handle(signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and signum in caught:
            raise KeyboardInterrupt
        caught.append(signum)

    before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class _Clock:
    """Time since the start, without evaluations and checkpoints where speed is measured."""

    def __init__(self, step: int) -> None:
        self._start = self._mark = self._last_checkpoint = time.monotonic()
        self._step, self._paused = step, 0.0
        self.checkpoint_s = 0.0

    @property
    def hours(self) -> float:
        return (time.monotonic() - self._start) / 3600

    @property
    def since_checkpoint(self) -> float:
        return time.monotonic() - self._last_checkpoint

    def tokens_per_s(self, step: int, tokens_per_step: int) -> float | None:
        """Measure since the last call."""
        now = time.monotonic()
        seconds, steps = now - self._mark - self._paused, step - self._step
        self._mark, self._step, self._paused = now, step, 0.0
        return steps * tokens_per_step / seconds if steps > 0 and seconds > 0 else None

    @contextmanager
    def pause(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        with self.pause():
            start = time.monotonic()
            yield
            self._last_checkpoint = time.monotonic()
            self.checkpoint_s = self._last_checkpoint - start
