"""What the loop does when something goes wrong, and in which order it saves: on a tiny model, in this process."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from llmpipe.errors import LlmpipeError, Terminated
from llmpipe.training import checkpoint, loop
from llmpipe.training.batches import Samples
from llmpipe.training.compute import equip
from llmpipe.training.loop import OutOfMemory, Run, State, train
from llmpipe.training.metrics import read_metrics
from llmpipe.training.objectives import CausalLM
from llmpipe.training.optim import make_optimizers, schedule
from llmpipe.training.settings import OptimizerConfig, ScheduleConfig
from tests.models.test_transformer import tiny


class Split:
    """Tokens that count up, with a document every 50."""

    path, eos_id = "tokens", 0

    def __len__(self) -> int:
        return 5000

    def window(self, start: int, length: int) -> np.ndarray:
        return np.arange(start, start + length) % 50

    def lineage(self, start: int, length: int) -> list[dict]:
        return [{"id": f"doc-{d}", "source": "made", "language": "zh"} for d in range(start // 50, (start + length - 1) // 50 + 1)]


def make(output: Path, **changes: object) -> Run:
    model = tiny()
    model.initialize(torch.Generator().manual_seed(1))
    return replace(
        Run(
            model=model, optimizers=make_optimizers(model, OptimizerConfig(), name="muon", lr=0.02, dtype="fp32"), samples=Samples(Split(), window=17, seed=1), objective=CausalLM(),
            steps=20, batch_size=4, micro_batch=2, schedule=partial(schedule, config=ScheduleConfig(), steps=20), clip_norm=1.0, device="cpu", dtype="fp32", output=output,
            log_every=5, checkpoint_every=5,
        ),
        **changes,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("llmpipe").propagate = True
    caplog.set_level(logging.INFO, "llmpipe")
    return caplog


def poison(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int], bool], *, killed: int = 0) -> list[int]:
    """Make the loss of some batches NaN; return the numbers of the batches that were taken."""
    whole, taken = loop.step, []
    backward = loop._backward

    def step(run: Run, state: State) -> None:
        taken.append(state.batch)
        with monkeypatch.context() as patch:
            if len(taken) == killed:
                raise KeyboardInterrupt
            if bad(state.batch):
                patch.setattr(loop, "_backward", lambda *a: backward(*a) * math.nan)
            whole(run, state)

    monkeypatch.setattr(loop, "step", step)
    return taken


def test_three_bad_steps_are_skipped_and_the_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = poison(monkeypatch, lambda b: b in (6, 7, 8))
    final = train(make(tmp_path))
    assert (final.step, final.skipped, final.rollbacks, final.skipped_in_row) == (20, 3, 0, 0) and taken == list(range(20))
    assert all(math.isfinite(r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl"))
    assert not list(tmp_path.glob("bad-batch-*"))


def test_the_fourth_goes_back_once_and_on_with_other_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture) -> None:
    taken = poison(monkeypatch, lambda b: 12 <= b <= 15)
    final = train(make(tmp_path))
    assert (final.step, final.batch, final.skipped, final.rollbacks) == (20, 26, 4, 1)
    assert taken == list(range(26))  # step 10's state goes on with batch 16: what led there is not tried again
    assert "going back to step 10" in heard.text and "passing over batches 10 to 15" in heard.text
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [5, 10, 15, 20]
    dump = json.loads((tmp_path / "bad-batch-00000016.json").read_text())
    assert dump["batch"] == 15 and [s["sample"] for s in dump["samples"]] == [60, 61, 62, 63]
    first = dump["samples"][0]
    assert first["ids"] == [i % 50 for i in range(first["start"], first["start"] + 17)] and first["documents"][0]["id"] == f"doc-{first['start'] // 50}"


def test_a_second_time_it_stops_and_keeps_the_finite_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, lambda b: b >= 12)
    with pytest.raises(LlmpipeError, match=r"not finite at step 14, for the 4th time in a row, again, after going back once .*bad-batch-00000014.json"):
        train(make(tmp_path))
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step-00000010", "step-00000005"]
    assert (tmp_path / "bad-batch-00000014.json").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture) -> None:
    run = make(tmp_path)
    whole, done = run.optimizers[0].step, []

    def step() -> None:
        whole()
        done.append(None)
        if len(done) == 15:
            run.model.model.norm.weight.data.fill_(math.inf)

    monkeypatch.setattr(run.optimizers[0], "step", step)
    final = train(run)
    assert "the weights are not finite after step 15" in heard.text and final.rollbacks == 1 and final.step == 20
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize("killed", [15, 19, 23])  # among the bad batches; behind the rollback; behind the checkpoint after it
def test_a_killed_run_goes_back_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int) -> None:
    runs = []
    for name, at in (("whole", 0), ("killed", killed), ("killed", 0)):
        with monkeypatch.context() as patch:
            poison(patch, lambda b: 12 <= b <= 15, killed=at)
            runs.append(make(tmp_path / name))
            if at:
                with pytest.raises(KeyboardInterrupt):
                    train(runs.pop())
            else:
                assert train(runs[-1]).rollbacks == 1
    for p, q in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(p, q)


def test_a_spike_is_said_and_counted(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    state = State(recent=[3.0 + 0.01 * (i % 5) for i in range(128)])
    loop._watch(state, 3.05)
    assert state.spikes == 0
    loop._watch(state, 4.0)
    assert state.spikes == 1 and "loss 4.0000, a spike of" in heard.text and len(state.recent) == 128


def test_it_saves_before_it_evaluates(tmp_path: Path) -> None:
    seen: list[str] = []

    def evaluate() -> dict[str, float]:
        seen.append(checkpoint.checkpoints(tmp_path / "checkpoints")[0].name)
        return {"val_loss": 1.0}

    train(make(tmp_path, evaluate=evaluate, eval_every=10))
    assert seen == ["step-00000010", "step-00000020"]


def test_max_hours_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(Terminated, match=r"max_hours 1e-09 are over; step 1 of 20 is saved") as caught:
        train(make(tmp_path, max_hours=1e-9))
    assert "the same command goes on" in caught.value.hint and caught.value.exit_code == 143
    assert train(make(tmp_path)).step == 20


@pytest.mark.parametrize("change", [{"background": True}, {}])
def test_checkpoints_in_the_background_and_computed_activations_change_no_bit(tmp_path: Path, change: dict) -> None:
    train(plain := make(tmp_path / "plain"))
    other = make(tmp_path / "other", **change)
    if not change:
        equip(other.model, device="cpu", dtype="fp32", checkpoint_activations=True, compiled=False)
    with pytest.raises(Terminated):
        train(replace(other, max_hours=1e-9))
    train(other)
    for p, q in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "other" / "checkpoints")] == ["step-00000020", "step-00000015"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")])
def test_no_memory_names_the_micro_batch_to_try(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(loop, "_backward", fail)
    with pytest.raises(OutOfMemory, match="out of memory at step 1, with micro_batch 2 of 16 tokens") as caught:
        train(make(tmp_path))
    assert "micro_batch=1" in caught.value.hint
    with pytest.raises(OutOfMemory) as caught:
        train(make(tmp_path, micro_batch=1))
    assert "checkpoint_activations=true" in caught.value.hint
    monkeypatch.setattr(loop, "_backward", lambda *_: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        train(make(tmp_path))


def test_dropout_is_a_function_of_seed_and_sample() -> None:
    assert loop.dropout_seed(1, 5) == loop.dropout_seed(1, 5) != loop.dropout_seed(1, 6)
    assert loop.dropout_seed(1, 5) != loop.dropout_seed(2, 5)
