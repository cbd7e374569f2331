"""The loop divides once, never lets NaN win, and goes on after SIGKILL to the very same result."""

from __future__ import annotations

import dataclasses
import json
import random
import time

import numpy as np
import pytest
import torch

from llmpipe.data.files import sha256_file
from llmpipe.errors import LlmpipeError
from llmpipe.finetune.classify import CLASSIFY
from llmpipe.finetune.loop import Best, Plan, accumulate, batch_indices, train
from llmpipe.finetune.stage import LoRA
from llmpipe.finetune.task import Encoder, Example, LossSettings
from llmpipe.models.heads import SequenceClassifier
from llmpipe.models.hf import load_config
from tests.finetune.test_classify import finetune, labelled, write_rows
from tests.tiny import make_model
from tests.warm import start

PLAN = Plan(
    steps=6, batch_size=8, evaluate_every=3, patience=0, metric="loss", lower_is_better=True, lr=1e-3, head_lr=1e-3, warmup_steps=0, min_lr=0.1, weight_decay=0.01,
    clip=1.0, micro_batch_tokens=10_000, seed=1, device="cpu", dtype="fp32", pad=1, loss=LossSettings(), log_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base):
    model = SequenceClassifier(load_config(base), num_labels=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.2, generator=generator)
    return model


@pytest.fixture
def examples(base):
    encoder = Encoder.for_model(base, labels=["好评", "差评"])
    return [e for row in labelled(24) for e in CLASSIFY.encode(row, encoder)]


def gradients(model, batch, plan):
    model.zero_grad()
    loss = accumulate(CLASSIFY, model, batch, plan)
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(class_weights=torch.tensor([0.3, 1.7]), label_smoothing=0.1)], ids=["plain", "weighted"])
def test_eight_micro_batches_equal_one_batch_whatever_their_sizes(model, examples, settings):
    plan = dataclasses.replace(PLAN, loss=settings)
    whole_loss, whole = gradients(model, examples[:8], plan)
    parts_loss, parts = gradients(model, examples[:8], dataclasses.replace(plan, micro_batch_tokens=1))
    assert parts_loss == pytest.approx(whole_loss, abs=1e-6)
    for name in whole:
        assert (whole[name] - parts[name]).abs().max() <= 1e-6 * max(1.0, whole[name].abs().max())


def test_padding_does_not_change_a_prediction(model, examples):
    with torch.no_grad():
        for example in examples[:4]:
            alone = model(torch.from_numpy(example.ids)[None], torch.tensor([len(example.ids)]))
            padded = CLASSIFY.collate([example, Example(np.arange(60), 0)], 1)
            assert (model(padded.ids, padded.lengths)[0] - alone[0]).abs().max() < 1e-5


def test_every_epoch_has_every_example_once_and_steps_are_a_function_of_seed_and_number():
    plan = dataclasses.replace(PLAN, batch_size=5)
    drawn = np.concatenate([batch_indices(12, plan, step) for step in range(12)])
    for epoch in range(5):
        assert sorted(drawn[epoch * 12 : epoch * 12 + 12]) == list(range(12))
    assert (batch_indices(12, plan, 7) == batch_indices(12, plan, 7)).all()
    assert (batch_indices(12, plan, 7) != batch_indices(12, dataclasses.replace(plan, seed=2), 7)).any()


def test_nan_never_becomes_best():
    best = Best()
    offered = [float("nan"), 0.5, float("nan"), 0.4, float("inf"), 0.6]
    assert [best.offer(v, step, lower_is_better=False) for step, v in enumerate(offered)] == [False, True, False, False, False, True]
    assert (best.value, best.step, best.waited) == (0.6, 5, 0)


def test_an_infinite_loss_stops_with_an_error_and_leaves_the_checkpoint_finite(model, examples, tmp_path):
    def poison():
        with torch.no_grad():
            model.score.weight[0, 0] = float("nan")
        return {"loss": 1.0}

    with pytest.raises(LlmpipeError, match="step 4: the loss is nan") as error:
        train(CLASSIFY, model, examples, PLAN, evaluate=poison, folder=tmp_path / "c", log=lambda line: None, rewind=lambda step: None)
    assert error.value.exit_code == 1
    scores = iter([0.7, float("nan")])
    fresh = SequenceClassifier(model.config, num_labels=2)
    fresh.load_state_dict({n: t.nan_to_num(0.1) for n, t in model.state_dict().items()})
    seen = {}

    def evaluate():
        seen.setdefault("first", fresh.score.weight.detach().clone())
        return {"loss": next(scores)}

    result = train(CLASSIFY, fresh, examples, PLAN, evaluate=evaluate, folder=tmp_path / "d", log=lambda line: None, rewind=lambda step: None)
    assert (result.best.value, result.best.step) == (0.7, 3)
    assert torch.equal(fresh.score.weight, seen["first"])


def test_stops_when_nothing_gets_better_and_remembers_it_after_a_restart(model, examples, tmp_path):
    plan = dataclasses.replace(PLAN, steps=60, patience=2)
    scores = iter([0.5, 0.6, 0.7, 0.1])
    steps = []
    for _ in range(2):  # the second run finds the first one's checkpoint and has nothing to do
        result = train(CLASSIFY, model, examples, plan, evaluate=lambda: {"loss": next(scores)}, folder=tmp_path / "c", log=lambda line: steps.append(line["step"]), rewind=lambda step: None)
        assert result.stopped_early and (result.best.value, result.best.step, result.steps) == (0.5, 3, 9)
    assert max(steps) == 9 == len(steps)


def test_killed_and_resumed_gives_the_same_bytes(base, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", labelled(160))
    settings = {"epochs": 6, "evaluations_per_epoch": 4, "seeds": 2, "patience": 0, "threads": 1, "lora": {"rank": 2}, "log_every": 1}
    finetune(base, source, tmp_path / "whole", **{**settings, "lora": LoRA(rank=2)})
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**settings, "device": "cpu", "dtype": "fp32", "lr": 3e-3}), encoding="utf-8")
    arguments = ["finetune", "--model", base, "--input", source, "--output", tmp_path / "cut", "--config", config]
    rng, log, lines, kills = random.Random(3), tmp_path / "log.txt", tmp_path / "cut" / "metrics.jsonl", 0
    for _ in range(5):
        before = lines.stat().st_size if lines.exists() else 0
        process = start(tmp_path, arguments, log=log)
        while process.is_alive() and (lines.stat().st_size if lines.exists() else 0) <= before:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.1)  # the rest of an evaluation interval, a checkpoint, or the start of the next
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    process = start(tmp_path, arguments, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert kills == 5
    for name in ("model.safetensors", "config.json", "adapter/adapter_model.safetensors", "splits/train.parquet"):
        assert sha256_file(tmp_path / "cut" / name) == sha256_file(tmp_path / "whole" / name), name

    def steps(output):
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]

    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")
