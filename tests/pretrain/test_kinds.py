"""Every kind of model trains from the same tokens, resumes to the same bits, and leaves a directory that transformers loads."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmpipe.config import load
from llmpipe.data.manifest import read_manifest
from llmpipe.data.tokens import TokensDir
from llmpipe.models.families import FAMILIES
from llmpipe.models.hf import load_model, load_tokenizer
from llmpipe.models.table import MODELS
from llmpipe.pretrain.shape import shape_of
from llmpipe.pretrain.stage import Config
from llmpipe.training.metrics import read_metrics
from tests.material import bilingual_rows, write_docs_dir
from tests.models.test_families import auto_class
from tests.warm import start

SETS = {
    "model.num_layers": 2, "model.dim": 32, "model.num_heads": 2, "seq_len": 32, "batch_tokens": 256, "micro_batch": 4, "steps": 30, "eval_every": 15, "log_every": 5, "checkpoint_every": 4,
    "threads": 1, "dtype": "fp32", "eval_tokens": 600, "sample_tokens": 0,
}  # fmt: skip


def arguments(output: str, **changes: object) -> list[str]:
    sets = {k: v for k, v in {**SETS, **{k.replace("__", "."): v for k, v in changes.items()}}.items() if v is not None}
    return ["pretrain", "--input", "tokens", "--output", output, *(x for k, v in sets.items() for x in ("--set", f"{k}={v}"))]


@pytest.fixture(scope="module")
def tokens_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmpipe.cli import main

    root = tmp_path_factory.mktemp("tokens")
    write_docs_dir(root / "docs", bilingual_rows(40))
    before, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(root)
    try:
        for name, size in (("tok", 460), ("other", 440)):
            assert main(["tokenizer", "--input", "docs", "--output", name, "--set", f"vocab_size={size}"]) == 0
        for tok, out in (("tok", "tokens"), ("other", "strange")):
            assert main(["tokenize", "--input", "docs", "--tokenizer", tok, "--output", out, "--set", "valid_fraction=0.2", "--workers", "1"]) == 0
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)
    return root


@pytest.fixture
def here(tmp_path: Path, tokens_root: Path) -> Path:
    for name in ("tokens", "strange", "tok"):
        (tmp_path / name).symlink_to(tokens_root / name)
    return tmp_path


def steady(path: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("tokens_per_s", "mfu")} for r in read_metrics(path / "metrics.jsonl")]


@pytest.mark.parametrize("kind", MODELS)
def test_each_kind_learns_and_transformers_gives_the_same_logits(here: Path, run: Callable, kind: str) -> None:
    done = run(*arguments("out", model__kind=kind))
    assert done.returncode == 0, done.stderr
    records = read_metrics(here / "out" / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"] - 0.1 and records[-1]["val_loss"] < records[0]["loss"]
    assert set(records[-1]) & {"val_bpb", "val_ppl"} == ({"val_ppl"} if kind in ("bert", "modernbert") else set() if kind == "t5" else {"val_bpb"})
    family = "qwen3" if kind == "gpt" else kind
    theirs, loading = auto_class(family).from_pretrained(here / "out", output_loading_info=True)
    assert theirs.config.model_type == family and not any(loading.values())
    model, config = load_model(here / "out")
    assert read_manifest(here / "out", kind="model").info["parameters"] == sum(p.numel() for p in model.parameters())
    ids = torch.from_numpy(TokensDir(here / "tokens").split("valid").window(0, 30))[None]
    more, theirs_more = ({"decoder_ids": ids}, {"decoder_input_ids": ids}) if config.stack == "encoder-decoder" else ({}, {})
    with torch.no_grad():
        logits = model(ids, **more)
        assert (theirs.eval()(ids, **theirs_more).logits - logits).abs().max() <= 1e-4 and logits.std() > 0.01
    if config.stack != "encoder-decoder":
        return
    done = run("generate", "--model", "out", "--prompt", "河水 the river", "--set", "temperature=0", "--set", "max_new_tokens=6")
    tokenizer = load_tokenizer(here / "out")
    made = theirs.generate(torch.tensor([tokenizer.encode("河水 the river").ids]), max_new_tokens=6, do_sample=False)[0, 1:]
    assert done.returncode == 0 and done.stdout == tokenizer.decode([t for t in made.tolist() if t]) + "\n"


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_kills_change_no_bit_of_masks_spans_and_dropout(here: Path, run: Callable, kind: str) -> None:
    changes = {"model__kind": kind, "model__dropout": 0.1, "model__attention_dropout": 0.1}
    assert run(*arguments("whole", **changes)).returncode == 0
    log, output, kills = here / "log.txt", here / "cut", 0
    while kills < 3:
        process = start(here, arguments("cut", **changes), log=log)
        before = len(steady(output))
        while process.is_alive() and len(steady(output)) <= before:
            time.sleep(0.002)
        time.sleep(0.01 * kills)
        kills += process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
    process = start(here, arguments("cut", **changes), log=log)
    process.join()
    assert process.exitcode == 0 and kills >= 2, log.read_text()
    assert (output / "model.safetensors").read_bytes() == (here / "whole" / "model.safetensors").read_bytes()
    assert steady(output) == steady(here / "whole")


@pytest.mark.parametrize("kind", ["gpt2", "modernbert"])
def test_training_goes_on_from_a_model_directory(here: Path, run: Callable, kind: str) -> None:
    no_shape = {"model__num_layers": None, "model__dim": None, "model__num_heads": None}
    assert run(*arguments("base", model__kind=kind)).returncode == 0
    done = run(*arguments("further", init="base", steps=10, lr=0.0005, optimizer="adamw", **no_shape))
    assert done.returncode == 0, done.stderr
    base, further = (read_metrics(here / name / "metrics.jsonl") for name in ("base", "further"))
    assert further[0]["loss"] < base[0]["loss"] - 0.1 and further[-1]["val_loss"] < base[-1]["val_loss"] + 0.1
    assert json.loads((here / "further" / "config.json").read_text())["model_type"] == kind
    strange = [{"tokens": "strange"}.get(a, a) for a in arguments("out", init="base", **no_shape)]
    done = run(*strange)
    assert done.returncode == 3 and "its tokenizer is not the one that made the tokens" in done.stderr and "llmpipe tokenize --tokenizer" in done.stderr
    done = run(*arguments("out", init="base", **{**no_shape, "seq_len": 64, "batch_tokens": 256}))
    assert done.returncode == 2 and "seq_len 64 is more than the 32 positions" in done.stderr


@pytest.mark.parametrize(("kind", "width"), [("bert", 30), ("t5", 34)])
def test_each_kind_trains_on_a_mixture_in_windows_that_share_no_token(here: Path, run: Callable, kind: str, width: int) -> None:
    changes = {"model__kind": kind, "mixture": "{by: language, weights: {en: 3, zh: 1}}", "steps": 16}
    done = run(*arguments("out", **changes), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    done = run(*arguments("out", **changes))
    assert done.returncode == 0, done.stderr
    info = read_manifest(here / "out", kind="model").info
    seen = info["samples_by_source"]
    assert sum(seen.values()) == 16 * 8 and abs(seen["en"] - 96) <= 3
    assert planned["mixture"] == {n: {"tokens": c * width, "epochs": pytest.approx(info["epochs_by_source"][n], abs=0.01)} for n, c in seen.items()}
    assert planned["tokens"]["seen"] == read_metrics(here / "out" / "metrics.jsonl")[-1]["tokens"] == 16 * 8 * width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__kind": "bert", "objective": "clm"}, "objective clm does not fit model.kind bert, which is an encoder"),
        ({"objective": "mlm"}, "which is a decoder"),
        ({"model__kind": "bert", "model__qk_norm": "true"}, "model.qk_norm True has no meaning for model.kind bert"),
        ({"model__kind": "gpt2", "model__num_kv_heads": 1}, "model.num_kv_heads 1 has no meaning"),
        ({"model__kind": "bart"}, "'bart' is not one of gpt, llama, gpt2, bert, modernbert, t5"),
        ({"model__kind": "t5", "seq_len": 2400, "batch_tokens": 2400}, "removes 133 spans, the tokenizer reserves"),
        ({"init": "tok"}, "init brings its own shape"),
        ({"model__dropout": 1.0}, "model.dropout 1.0 is not in"),
        ({"model__kind": "t5", "doc_mask": "true"}, "doc_mask is for models whose blocks all see the whole text"),
        ({"noise__rate": 1.5}, "rate 1.5 is not between 0 and 1"),
    ],
)
def test_what_does_not_fit_a_kind_is_refused(here: Path, run: Callable, changes: dict, message: str) -> None:
    done = run(*arguments("out", **changes))
    assert done.returncode in (2, 3) and message in done.stderr, done.stderr


@pytest.mark.parametrize("kind", MODELS)
def test_depth_alone_gives_every_kind_a_size(kind: str) -> None:
    small, large = (shape_of(load(Config, stage="pretrain", sets=[f"model.kind={kind}", f"depth={depth}"]), vocab_size=8192) for depth in (4, 12))
    assert (small.dim, small.num_layers, large.dim, large.num_layers) == (256, 4, 768, 12)
    assert small.num_heads == 4 and large.num_heads in (6, 12) and small.steps > 500
    blocks = small.num_params - small.num_embedding
    assert 3e6 < blocks < (8.5e6 if kind == "t5" else 4e6)
    assert 4 * blocks < small.flops_per_token < 12 * small.num_params
    assert small.tokens_per_step == small.batch_size * small.sample_tokens and FAMILIES["qwen3" if kind == "gpt" else kind].help
