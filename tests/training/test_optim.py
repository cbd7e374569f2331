"""Schedules, which parameter goes to which optimizer, and state that is complete before the first step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from llmpipe.training.muon import Muon
from llmpipe.training.optim import add_penalties, default_lr, flat_tensors, make_optimizers, matrices_of, schedule, set_lr
from llmpipe.training.settings import OptimizerConfig, ScheduleConfig
from tests.models.test_transformer import some_ids, tiny


def test_wsd_rises_stays_and_falls_to_its_end() -> None:
    config = ScheduleConfig(warmup=0.1, decay=0.4, final=0.1)
    factors = [schedule(s, config, steps=100) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:61] == [1.0] * 52
    assert all(a > b for a, b in pairwise(factors[60:]))
    assert 0.1 < factors[-1] < 0.13


def test_cosine_falls_from_the_end_of_warmup() -> None:
    factors = [schedule(s, ScheduleConfig(kind="cosine", warmup=0.1), steps=100) for s in range(100)]
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and factors[-1] < 0.01


def test_warmup_and_decay_are_shares() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        ScheduleConfig(warmup=0.6, decay=0.6)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer_and_its_state(name: str) -> None:
    model = tiny()
    optimizers = make_optimizers(model, OptimizerConfig(), name=name, lr=0.02)
    grouped = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    before = {k: v.clone() for k, v in flat_tensors(model, optimizers).items()}
    ids = some_ids()
    model(ids, ids.roll(-1, 1)).backward()
    assert set_lr(optimizers, 0.5) == 0.01
    for optimizer in optimizers:
        optimizer.step()
    after = flat_tensors(model, optimizers)
    assert after.keys() == before.keys()
    assert all(not torch.equal(after[k], before[k]) for k in after)
    muon = [p for o in optimizers if isinstance(o, torch.optim.Muon) for g in o.param_groups for p in g["params"]]
    assert len(muon) == (14 if name == "muon" else 0)
    decayed = {id(p) for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]}
    assert all((id(p) in decayed) == ("_proj" in n) for n, p in model.named_parameters())


def test_adamw_rate_falls_with_size() -> None:
    assert default_lr("adamw", 5_000_000) == pytest.approx(6.5e-3, rel=0.02)
    assert default_lr("adamw", 124_000_000) == pytest.approx(2.2e-3, rel=0.03)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_takes_the_steps_of_torchs_in_bf16_and_nearly_those_in_fp32(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    start, gradients = torch.randn(shape, generator=generator), [torch.randn(shape, generator=generator) for _ in range(3)]

    def steps(make) -> torch.Tensor:
        p = torch.nn.Parameter(start.clone())
        optimizer = make(p)
        optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
        return p.detach()

    theirs = steps(lambda p: torch.optim.Muon([p], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original"))
    ours = {d: steps(lambda p, d=d: Muon([p], lr=0.02, weight_decay=0.1, momentum=0.95, dtype=d)) for d in (torch.bfloat16, torch.float32)}
    assert torch.equal(ours[torch.bfloat16], theirs)
    assert (ours[torch.float32] - theirs).abs().max() < 2e-3 and not torch.equal(ours[torch.float32], theirs)


def test_linear_falls_evenly_and_warmup_is_all_that_it_shares() -> None:
    factors = [schedule(s, ScheduleConfig(kind="linear", warmup=0.1, decay=1.0, final=0.2), steps=100) for s in range(100)]
    assert factors[9] == factors[10] == 1.0 and factors[55] == pytest.approx(0.6) and 0.2 < factors[-1] < 0.22


def test_penalties_pull_on_matrices_alone() -> None:
    model = tiny()
    ids = some_ids()
    model(ids, ids.roll(-1, 1)).backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    add_penalties(matrices_of(model), l1=0.1, l2=0.01)
    for name, p in model.named_parameters():
        wanted = before[name] + (0.1 * p.sign() + 0.01 * p if "_proj" in name else 0)
        assert torch.allclose(p.grad, wanted)
