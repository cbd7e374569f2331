"""The training loop: batches, gradients, steps; checkpoints, evaluations, signals; exact to resume.

    final = train(run)              # a Run says what to train on what; the same Run goes on where it was killed

The whole state of a run is its tensors (training/checkpoint.py) and a `State` of a few numbers. Every step is a function
of that state, so a run that was killed ends with the same bits as one that was not, on the same machine, threads and
number of processes; on another number the losses agree to a thousandth.
"""

from __future__ import annotations

import hashlib
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmpipe.data.files import write_json
from llmpipe.errors import LlmpipeError, Terminated
from llmpipe.log import log
from llmpipe.training import checkpoint
from llmpipe.training.batches import MixedSamples, Samples, step_samples
from llmpipe.training.compute import autocast, is_out_of_memory
from llmpipe.training.metrics import Metrics, Sink
from llmpipe.training.objectives import Batch, Objective
from llmpipe.training.optim import add_penalties, flat_tensors, matrices_of, set_lr
from llmpipe.training.parallel import World, is_lost_peer, local, sync_gradients, whole

FIRST_CHECKPOINT = 5  # a full disk or a missing right shows in the first minute, not after an hour
MAX_SKIPPED = 3  # non-finite steps in a row; one is chance, four are divergence
AUTO_CHECKPOINT_S = 120.0
AUTO_CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into checkpoints whose interval is left to us
SPIKE_WINDOW = 128
SPIKE_SIGMA = 6.0  # OLMo's rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that a training run is made of."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    samples: Samples | MixedSamples
    objective: Objective
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
    seed: int = 0
    """Of dropout; samples have their own."""
    l1: float = 0.0
    l2: float = 0.0
    world: World = World()
    log_every: int = 5
    eval_every: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    background: bool = False
    """Write checkpoints beside training, from a copy in memory."""
    max_hours: float | None = None
    flops_per_token: float = 0.0
    peak_flops: float | None = None
    evaluate: Callable[[], dict[str, Any]] | None = None
    sample: Callable[[int], None] | None = None
    """Write samples of step N's model; called behind each evaluation."""
    progress: Callable[..., None] = field(default=lambda *_, **__: None)
    sinks: Callable[[], Sequence[Sink]] = field(default=tuple)
    """Open what takes each line of metrics, beside metrics.jsonl."""


@dataclass(slots=True, kw_only=True)
class State:
    """All of a run's state that is not a tensor."""

    step: int = 0
    batch: int = 0
    """Which batch comes next: the position in the data. Equal to `step` until a rollback passes over bad batches."""
    loss_sum: float = 0.0
    """Of the steps since the last log line, with how many they are."""
    loss_steps: int = 0
    grad_norm: float = 0.0
    lr: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    rollbacks: int = 0
    spikes: int = 0
    recent: list[float] = field(default_factory=list)
    """The losses of the last 128 steps, against which a spike is told."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The latest one."""


class OutOfMemory(LlmpipeError):
    """A step found no memory; the hint names the micro-batch to try."""


def train(run: Run) -> State:
    """Train to the last step, from the newest checkpoint if there is one.

    Raises `Terminated` on SIGTERM or after `max_hours` and `KeyboardInterrupt` on Ctrl-C, both with the state saved, and
    `LlmpipeError` when the loss stays non-finite after one rollback; earlier checkpoints are then still there.
    """
    tensors = flat_tensors(run.model, run.optimizers)
    saver = checkpoint.Saver(run.output / "checkpoints", keep=run.keep, world=run.world, background=run.background)
    saved = checkpoint.load_latest(saver.folder, tensors, world=run.world)
    state = _state_of(saved) if saved else State()
    if saved:
        log.info("going on at step %d of %d", state.step, run.steps)
    metrics = Metrics(run.output / "metrics.jsonl", after=state.step, sinks=run.sinks()) if run.world.leads else None
    reported = int(run.world.first([metrics.last_step if metrics else 0])[0])
    if metrics and _log_due(run, state.step) and reported == state.step:  # killed between this step's line and the next checkpoint
        state.evaluation = {k: v for k, v in metrics.last.items() if k.startswith("val_")}
    if reported == state.step:
        state.loss_sum, state.loss_steps = 0.0, 0
    clock = _Clock(state.step)
    try:
        with _signals() as caught:
            while True:
                if _log_due(run, state.step) and reported < state.step:
                    _report(run, state, metrics, clock)
                    reported = state.step
                if state.step >= run.steps:
                    saver.wait()
                    return state
                step(run, state)
                due, *wishes = run.world.sum([float(run.world.leads and _checkpoint_due(run, state, clock)), *_wishes(run, caught, clock)])
                if state.skipped_in_row > MAX_SKIPPED or ((due or any(wishes)) and not _weights_are_finite(run)):
                    state = _roll_back(run, state, tensors, saver)
                    reported = min(reported, state.step)
                    if metrics:
                        metrics.rewind(state.step)
                    clock = _Clock(state.step)
                elif due or any(wishes):
                    with clock.checkpoint():
                        saver.save(step=state.step, tensors=tensors, state=asdict(state))
                    _leave(run, state, wishes, saver)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):  # in an optimizer or an evaluation; `step` says its own
            raise out_of_memory(run, state.step + 1) from error
        if run.world.size > 1 and is_lost_peer(error):
            raise LlmpipeError(f"another process of this run has ended ({str(error).splitlines()[0][:200]})", hint="its own message says why; the same command goes on from the last checkpoint") from error
        raise
    finally:
        saver.close()
        if metrics:
            metrics.close()


def step(run: Run, state: State) -> None:
    """Take one optimizer step; leave weights and moments alone if its loss or gradient is not finite."""
    numbers = step_samples(step=state.batch, batch_size=run.batch_size, rank=run.world.rank, world_size=run.world.size)
    parts = [numbers[i : i + run.micro_batch] for i in range(0, len(numbers), run.micro_batch)]
    batches = [run.objective.batch(run.samples.windows(part), part) for part in parts]
    # One divisor for all micro-batches of all processes: a mean of means weighs short ones too much.
    count = run.world.sum([float(sum(b.count for b in batches))])[0]
    run.model.train()
    summed = torch.zeros((), device=run.device)
    try:
        for part, batch in zip(parts, batches, strict=True):
            torch.manual_seed(dropout_seed(run.seed, part[0]))
            sync_gradients(run.model, run.world, part is parts[-1])
            summed += _backward(run, batch.to(run.device), count)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            _free(run)
            raise out_of_memory(run, state.step + 1) from error
        raise
    if run.l1 or run.l2:
        add_penalties(matrices_of(run.model), l1=run.l1, l2=run.l2)
    # Here, once a step, the host waits for the device: a step that is not finite must not touch weights and moments.
    total, norm = torch.stack((summed.float(), _clip(run).to(summed.device).float())).tolist()
    loss = run.world.sum([total])[0] / max(count, 1.0)
    state.lr = set_lr(run.optimizers, run.schedule(state.step))
    if math.isfinite(loss) and math.isfinite(norm):
        for optimizer in run.optimizers:
            optimizer.step()
        state.loss_sum += loss
        state.loss_steps += 1
        state.grad_norm = norm
        state.skipped_in_row = 0
        _watch(state, loss)
    else:
        state.skipped += 1
        state.skipped_in_row += 1
        log.warning("step %d: loss %s, gradient norm %s; the step is skipped (batch %d)", state.step + 1, loss, norm, state.batch)
    _free(run)
    state.step += 1
    state.batch += 1


def _backward(run: Run, batch: Batch, count: float) -> Tensor:
    with autocast(run.device, run.dtype):
        summed = run.objective.loss(run.model, batch)
    (summed * (run.world.size / count)).backward()  # FSDP takes the mean over processes; this makes it the sum
    return summed.detach()


def _clip(run: Run) -> Tensor:
    """Scale gradients down to `clip_norm` together; return the norm before."""
    return whole(nn.utils.clip_grad_norm_(run.model.parameters(), run.clip_norm or math.inf, foreach=True))


def _free(run: Run) -> None:
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)


def dropout_seed(seed: int, sample: int) -> int:
    """Seed what is random inside a micro-batch from its first sample: a resumed run drops the same."""
    return int.from_bytes(hashlib.blake2b(f"dropout:{seed}:{sample}".encode(), digest_size=7).digest())


def out_of_memory(run: Run, step: int) -> OutOfMemory:
    hint = f"--set micro_batch={run.micro_batch // 2}, which changes results by rounding alone, or micro_batch=auto; the same command goes on"
    if run.micro_batch == 1:
        hint = "--set checkpoint_activations=true, a smaller seq_len or a smaller model"
    return OutOfMemory(f"out of memory at step {step}, with micro_batch {run.micro_batch} of {run.samples.stride} tokens", hint=hint)


# --- what can go wrong ----------------------------------------------------------------------------------------------


def _watch(state: State, loss: float) -> None:
    """Say when a loss lies 6 standard deviations above the last 128."""
    if len(state.recent) == SPIKE_WINDOW:
        mean = statistics.fmean(state.recent)
        sigma = math.sqrt(sum((x - mean) ** 2 for x in state.recent) / SPIKE_WINDOW)
        if loss > mean + SPIKE_SIGMA * sigma and sigma > 0:
            state.spikes += 1
            log.warning("step %d: loss %.4f, a spike of %.0f sigma above the last %d (mean %.4f)", state.step + 1, loss, (loss - mean) / sigma, SPIKE_WINDOW, mean)
    state.recent = [*state.recent, loss][-SPIKE_WINDOW:]


def _weights_are_finite(run: Run) -> bool:
    """Look at all weights before they are saved: a checkpoint that is not finite would push out one that is."""
    bad = torch.stack([~torch.isfinite(local(p.detach())).all() for p in run.model.parameters()]).any()
    return run.world.sum([float(bad)])[0] == 0


def _roll_back(run: Run, bad: State, tensors: dict[str, Tensor], saver: checkpoint.Saver) -> State:
    """Go back to the last checkpoint, once a run, and on from there with other batches; the second time stop.

    Either way the batch that failed is written out, since it is the first suspect.
    """
    what = f"the loss is not finite at step {bad.step}, for the {bad.skipped_in_row}th time in a row" if bad.skipped_in_row else f"the weights are not finite after step {bad.step}"
    dump = _dump_batch(run, bad, what)
    saver.wait()
    saved = checkpoint.load_latest(saver.folder, tensors, world=run.world) if not bad.rollbacks else None
    if saved is None:
        again = "again, after going back once" if bad.rollbacks else "and there is no checkpoint to go back to"
        raise LlmpipeError(f"{what}, {again} (its batch: {dump})", hint="the last finite checkpoint is kept; a smaller lr or a longer schedule.warmup usually helps")
    state = _state_of(saved)
    log.warning("%s; going back to step %d and passing over batches %d to %d (the last of them: %s)", what, state.step, state.batch, bad.batch - 1, dump)
    state.batch, state.skipped, state.rollbacks = bad.batch, bad.skipped, bad.rollbacks + 1
    return state


def _state_of(saved: dict[str, Any]) -> State:
    return State(**{f.name: saved[f.name] for f in fields(State) if f.name in saved})


def _dump_batch(run: Run, bad: State, what: str) -> Path:
    """Write the samples of the last batch: their ids, and the documents that these came from."""
    path = run.output / f"bad-batch-{bad.step:08d}.json"
    if run.world.leads:
        samples = []
        for number in step_samples(step=bad.batch - 1, batch_size=run.batch_size):
            source, start = run.samples.locate(number)
            samples.append({"sample": number, "start": start, "ids": run.samples.windows([number])[0].tolist(), "documents": source.split.lineage(start, source.window)})
        write_json(path, {"why": what, "step": bad.step, "batch": bad.batch - 1, "samples": samples})
    return path


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


def _report(run: Run, state: State, metrics: Metrics | None, clock: _Clock) -> None:
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
        "mfu": round(speed * run.flops_per_token / run.peak_flops / run.world.size, 4) if speed and run.peak_flops else None,
    }
    if sources := run.samples.counts(state.batch * run.batch_size):
        record["samples_by_source"] = sources
    if _eval_due(run, state.step) and run.evaluate is not None:
        with clock.pause():
            state.evaluation = run.evaluate()
            if run.sample is not None:
                run.sample(state.step)
        record.update(state.evaluation)
    if metrics is not None:
        metrics.write(record)
    state.loss_sum, state.loss_steps = 0.0, 0
    shown = {k: record[k] for k in ("loss", "val_bpb", "tokens_per_s", "mfu") if record.get(k) is not None}
    run.progress(state.step, run.steps, **shown)


def _wishes(run: Run, caught: Sequence[int], clock: _Clock) -> list[float]:
    """Why this process wants to stop: Ctrl-C, SIGTERM, time. All stop when one wishes to."""
    return [float(signal.SIGINT in caught), float(signal.SIGTERM in caught), float(run.world.leads and clock.hours > (run.max_hours or math.inf))]


def _leave(run: Run, state: State, wishes: Sequence[float], saver: checkpoint.Saver) -> None:
    """Stop, now that the state is saved, if something asked for it; not when the last step is done anyway."""
    if state.step >= run.steps or not any(wishes):
        return
    saver.wait()
    interrupted, terminated, _ = wishes
    done = f"step {state.step} of {run.steps} is saved"
    if interrupted:
        log.info("%s; the same command goes on from there", done)
        raise KeyboardInterrupt
    why = "stopped by SIGTERM" if terminated else f"max_hours {run.max_hours:g} are over"
    raise Terminated(f"{why}; {done}", hint="the same command goes on from there")


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
