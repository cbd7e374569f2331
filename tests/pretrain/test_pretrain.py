"""Pretraining end to end on tiny models: exact to resume after any kill, saved on signals, refused when it makes no sense."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from llmpipe.data.manifest import read_manifest
from llmpipe.data.tokens import TokensDir
from llmpipe.models.hf import load_model
from llmpipe.training.metrics import read_metrics
from tests.pretrain.runs import arguments, steady, wait_for
from tests.warm import start


@pytest.fixture(scope="module")
def reference(tokens_root: Path) -> Path:
    """A run that nothing disturbed."""
    done = subprocess.run([sys.executable, "-m", "llmpipe", *arguments("reference")], cwd=tokens_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tokens_root / "reference"


def test_a_run_learns_and_leaves_a_whole_model(reference: Path) -> None:
    manifest = read_manifest(reference, kind="model")
    assert {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} == {s.name for s in manifest.shards}
    assert [p.name for p in reference.rglob("model.safetensors")] == ["model.safetensors"]
    records = read_metrics(reference / "metrics.jsonl")
    assert [r["step"] for r in records] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert set(records[0]) == {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu"}
    assert set(records[2]) == {*records[0], "val_loss", "val_bpb"}
    assert records[0]["tokens"] == 4 * 256 and records[-1]["loss"] < records[0]["loss"]
    assert manifest.info["val_bpb"] == records[-1]["val_bpb"] < records[2]["val_bpb"]
    model, config = load_model(reference)
    assert manifest.info["parameters"] == sum(p.numel() for p in model.parameters()) and config.num_kv_heads == 1


def test_val_bpb_counts_all_and_only_the_text(reference: Path, tokens_root: Path) -> None:
    """Recompute it token by token: nats of tokens that stand for text, over the bytes that they stand for."""
    model, _ = load_model(reference)
    tokens = TokensDir(tokens_root / "tokens")
    ids, sizes = tokens.split("valid").window(0, 501), tokens.token_bytes()
    nats = num_bytes = 0.0
    for i in range(500):
        start = i // 32 * 32
        with torch.no_grad():
            logp = model(torch.from_numpy(ids[start : i + 1])[None])[0, -1].log_softmax(-1)
        if sizes[ids[i + 1]]:
            nats -= float(logp[ids[i + 1]])
            num_bytes += sizes[ids[i + 1]]
    assert read_manifest(reference, kind="model").info["val_bpb"] == pytest.approx(nats / np.log(2) / num_bytes, rel=1e-5)


def test_twenty_kills_at_random_moments_change_no_bit(here: Path) -> None:
    """Some hit a start while it loads or resumes, the others the middle of a step, a checkpoint, an evaluation, a line of metrics."""
    rng, log, sets = random.Random(11), here / "log.txt", {"steps": 90, "log_every": 2, "eval_every": 30, "sample_tokens": 3}
    whole = start(here, arguments("whole", **sets), log=here / "whole.txt")
    whole.join()
    output = here / "killed"
    for _ in range(20):
        process = start(here, arguments("killed", **sets), log=log)
        before = len(steady(output))
        if rng.random() < 0.5:
            wait_for(process, lambda before=before: len(steady(output)) > before)
        time.sleep(rng.random() * 0.15)
        assert process.is_alive(), "it ended before the kill: " + log.read_text()
        process.kill()
        process.join()
    process = start(here, arguments("killed", **sets), log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert (output / "model.safetensors").read_bytes() == (here / "whole" / "model.safetensors").read_bytes()
    assert steady(output) == steady(here / "whole")
    assert (output / "samples" / "pretrain.jsonl").read_bytes() == (here / "whole" / "samples" / "pretrain.jsonl").read_bytes()
    assert read_manifest(output, kind="model").info == read_manifest(here / "whole", kind="model").info


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_the_same_command_goes_on(here: Path, reference: Path, number: signal.Signals, code: int) -> None:
    log = here / "log.txt"
    process = start(here, arguments("stopped", checkpoint_every=1000), log=log)
    wait_for(process, lambda: len(steady(here / "stopped")) >= 2)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code, log.read_text()
    assert "is saved" in log.read_text() and "the same command goes on" in log.read_text()
    saved = json.loads(max((here / "stopped" / "checkpoints").iterdir()).joinpath("state.json").read_text())
    assert 8 <= saved["step"] < 30
    process = start(here, arguments("stopped", checkpoint_every=1000), log=log)
    process.join()
    assert process.exitcode == 0 and f"going on at step {saved['step']}" in log.read_text()
    assert (here / "stopped" / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert steady(here / "stopped") == steady(reference)


def test_micro_batches_change_nothing_but_rounding(here: Path, run: Callable) -> None:
    for size in (4, 8):  # AdamW: Muon rounds to bf16 inside, which makes a last bit of a gradient a thousandth of a loss in 30 steps
        done = run(*arguments(f"by{size}", micro_batch=size, optimizer="adamw", lr=1e-3))
        assert done.returncode == 0, done.stderr
    for a, b in zip(steady(here / "by4"), steady(here / "by8"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_fresh_is_skipped_and_another_recipe_refused(here: Path, reference: Path, run: Callable) -> None:
    before = (reference / "model.safetensors").stat().st_mtime_ns
    (here / "reference").symlink_to(reference)
    done = run(*arguments("reference", log_every=7))
    assert done.returncode == 0 and "fresh" in done.stderr and (reference / "model.safetensors").stat().st_mtime_ns == before
    done = run(*arguments("reference", steps=31))
    assert done.returncode == 2 and "steps 30 -> 31" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 1000}, "two horizons: steps and tokens"),
        ({"depth": 2}, "depth and model.num_layers and model.dim: give the one or the others"),
        ({"model__dim": None}, "model.num_layers needs model.dim beside it"),
        ({"model__num_heads": 3}, "do not divide evenly"),
        ({"model__num_head": 2}, "model.num_head: unknown key; did you mean num_heads?"),
        ({"steps": 0}, "steps 0 is not above 0"),
        ({"batch_tokens": 16}, "batch_tokens 16 is less than one sequence of 32"),
        ({"objective": "clmm"}, "did you mean clm?"),
        ({"optimizer": "sgd"}, "'sgd' is not one of muon, adamw"),
    ],
)
def test_what_makes_no_sense_is_refused(here: Path, run: Callable, changes: dict, message: str) -> None:
    done = run(*arguments("out", **changes))
    assert done.returncode == 2 and message in done.stderr
    assert not (here / "out" / "manifest.json").exists()


def test_too_few_tokens_for_the_context_is_an_input_error(here: Path, run: Callable) -> None:
    done = run(*arguments("out", seq_len=100_000, batch_tokens=100_000))
    assert done.returncode == 3 and "fewer than two windows" in done.stderr


def test_dry_run_says_what_it_would_cost_and_writes_nothing(here: Path, reference: Path, run: Callable) -> None:
    done = run(*arguments("planned"), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["parameters"]["all"] == read_manifest(reference, kind="model").info["parameters"]
    assert plan["tokens"]["seen"] == 30 * 256 and plan["tokens_per_s"] > 0 and plan["memory_mb"]["all"] > 0
    assert sum(v for k, v in plan["parameters"].items() if k != "all") == plan["parameters"]["all"] and plan["checked"].startswith("forward, backward")
    assert {"weights", "gradients", "optimizer", "activations", "logits", "all"} <= plan["memory_mb"].keys() and plan["fits"] is True
    assert [d["device"] for d in plan["devices"]] == ["this CPU", "H100", "A100", "L40S", "4090", "T4"] and plan["devices"][0]["usd"] is None
    assert "co2_kg" not in plan["devices"][0] and plan["devices"][1]["usd"] > 0 and plan["tokens"]["of_chinchilla"] == round(7680 / plan["parameters"]["all"] / 20, 3)
    assert not (here / "planned").exists()
    done = run(*arguments("planned"), "--dry-run", "--json", "--set", "cost.grid_g_per_kwh=400", "--set", "cost.usd_per_hour={this: 0.1, H100: 2}")
    here_, h100 = json.loads(done.stdout)["devices"]
    assert here_["co2_kg"] > 0 and here_["usd"] > 0 and h100["basis"] == "989 TFLOP/s bf16 x 0.4"


def test_bits_per_byte_stand_by_language(here: Path, run: Callable) -> None:
    done = run(*arguments("by", eval_tokens=100_000))
    assert done.returncode == 0, done.stderr
    last = read_metrics(here / "by" / "metrics.jsonl")[-1]
    by = last["val_bpb_by"]
    assert set(by) == {"language"} and set(by["language"]) == {"en", "zh"}  # one source is no comparison
    assert min(by["language"].values()) < last["val_bpb"] < max(by["language"].values())
    assert read_manifest(here / "by", kind="model").info["val_bpb_by"] == by
    svg = (here / "by" / "curves.svg").read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg") and "val_bpb" in svg and "tokens a second" in svg
    samples = read_metrics(here / "by" / "samples" / "pretrain.jsonl")
    assert [s["step"] for s in samples] == [10, 20, 30] and all(s["text"] for s in samples)


def test_auto_finds_the_micro_batch_that_fits_and_keeps_it(here: Path, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmpipe.training import loop

    whole, tried = loop._backward, []

    def small(job, batch, count):
        tried.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise MemoryError
        return whole(job, batch, count)

    monkeypatch.setattr(loop, "_backward", small)
    done = run(*arguments("auto", micro_batch="auto", steps=4))
    assert done.returncode == 0, done.stderr
    assert tried[:3] == [8, 4, 2] and "micro_batch auto: 2 sequences" in done.stderr
    assert json.loads((here / "auto" / "state" / "micro_batch.json").read_text()) == {"micro_batch": 2}
    done = run(*arguments("fixed", micro_batch=4, steps=4))
    assert done.returncode == 1 and "out of memory at step 1, with micro_batch 4 of 32 tokens" in done.stderr and "micro_batch=2" in done.stderr
    done = run(*arguments("fixed", micro_batch=2, steps=4))  # what fits differs by machine: it is no other recipe
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("change", [{"doc_mask": True}, {"loss__z_loss": 1e-3}, {"loss__label_smoothing": 0.1}, {"optim__l1": 1e-3}, {"optim__l2": 1e-2}, {"checkpoint_activations": True}])
def test_options_are_off_by_default_and_do_something(here: Path, reference: Path, run: Callable, change: dict) -> None:
    done = run(*arguments("option", **change, steps=6, sample_tokens=0))
    assert done.returncode == 0, done.stderr
    plain = run(*arguments("plain", steps=6, sample_tokens=0))
    assert plain.returncode == 0
    same = (here / "option" / "model.safetensors").read_bytes() == (here / "plain" / "model.safetensors").read_bytes()
    assert same == ("checkpoint_activations" in change)


def test_hours_become_steps_once_and_stay(here: Path, run: Callable) -> None:
    assert run(*arguments("timed", steps=None, hours=0.0002)).returncode == 0
    horizon = json.loads((here / "timed" / "state" / "horizon.json").read_text())
    assert read_manifest(here / "timed", kind="model").info["steps"] == horizon["steps"] >= 1
    assert read_metrics(here / "timed" / "metrics.jsonl")[-1]["step"] == horizon["steps"]


def test_a_short_time_takes_smaller_steps(monkeypatch: pytest.MonkeyPatch, tokens_root: Path) -> None:
    from llmpipe.pretrain import job
    from llmpipe.pretrain.shape import shape_of
    from llmpipe.pretrain.stage import Config

    monkeypatch.setattr(job, "make_run", lambda config, shape, *_, **__: shape)
    monkeypatch.setattr(job, "seconds_per_step", lambda shape: (shape.tokens_per_step / 10_000, 8.3))
    for hours, batch, steps in ((0.1, 8192, 439), (0.3, 16384, 659), (3.0, 32768, 3295)):
        config = Config(depth=4, hours=hours)
        found, seconds, _ = job.shape_for_hours(config, shape_of(config, vocab_size=4096), TokensDir(tokens_root / "tokens").split("train"))
        assert (found.tokens_per_step, found.steps) == (batch, steps) and found.micro_batch <= found.batch_size and seconds * steps <= hours * 3600
    given = Config(depth=4, hours=0.1, batch_tokens=32768)
    assert job.shape_for_hours(given, shape_of(given, vocab_size=4096), TokensDir(tokens_root / "tokens").split("train"))[0].tokens_per_step == 32768


def test_adamw_cosine_and_bf16_learn_too(here: Path, run: Callable) -> None:
    done = run(*arguments("other", optimizer="adamw", schedule__kind="cosine", dtype="bf16"))
    assert done.returncode == 0, done.stderr
    records = read_metrics(here / "other" / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"]


def test_losses_that_stay_non_finite_stop_the_run_and_keep_its_checkpoints(here: Path, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmpipe.training import loop

    whole, calls = loop._backward, []

    def sometimes(job, batch, count):  # two micro-batches a step: steps 8 and 9 are bad, and all from step 20; it goes back to 18 once
        calls.append(None)
        summed = whole(job, batch, count)
        return summed * float("nan") if 14 < len(calls) <= 18 or len(calls) > 38 else summed

    monkeypatch.setattr(loop, "_backward", sometimes)
    done = run(*arguments("bad"))
    assert done.returncode == 1 and "the loss is not finite at step 22" in done.stderr and "going back to step 18" in done.stderr and "step 8: loss nan" in done.stderr
    newest = max(p for p in (here / "bad" / "checkpoints").iterdir())
    state = json.loads((newest / "state.json").read_text())
    assert state["step"] == 18 and state["skipped"] == 2
    dump = json.loads((here / "bad" / "bad-batch-00000022.json").read_text())
    assert len(dump["samples"]) == 8 and len(dump["samples"][0]["ids"]) == 33 and {"id", "language", "source"} <= dump["samples"][0]["documents"][0].keys()
    assert not (here / "bad" / "model.safetensors").exists()


def test_a_broken_newest_checkpoint_costs_only_the_steps_since_the_one_before(here: Path, reference: Path) -> None:
    log = here / "log.txt"
    process = start(here, arguments("broken"), log=log)
    wait_for(process, lambda: len(steady(here / "broken")) >= 4)
    process.kill()
    process.join()
    newest = max(p for p in (here / "broken" / "checkpoints").iterdir() if not p.name.endswith(".tmp"))
    (file,) = newest.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    process = start(here, arguments("broken"), log=log)
    process.join()
    assert process.exitcode == 0 and "going back to the checkpoint before it" in log.read_text()
    assert (here / "broken" / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
