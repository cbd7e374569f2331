"""One pretraining run, from token shards to a Hugging Face directory.

    counts = pretrain(config, work)          # what `llmpipe pretrain` calls

What it does, in order: open the tokens, make the model from the seed, turn `hours` into steps, train (training/loop.py),
write the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llmpipe.data import tokens as tokens_module
from llmpipe.data.files import read_json, write_json
from llmpipe.data.tokens import TokensDir, TokenSplit
from llmpipe.errors import InputError
from llmpipe.models.hf import save_model
from llmpipe.models.linear_loss import IGNORE
from llmpipe.models.transformer import ModelConfig, Transformer
from llmpipe.pretrain.shape import Shape, shape_of, with_steps
from llmpipe.pretrain.stage import Config
from llmpipe.training.batches import make_samples
from llmpipe.training.compute import autocast, peak_flops, prepare
from llmpipe.training.loop import Run, State, step, train
from llmpipe.training.objectives import OBJECTIVES
from llmpipe.training.optim import default_lr, make_optimizers, schedule
from llmpipe.work import Counts, Work

NUM_EVALUATIONS = 10
PROBE_STEPS = 3  # after one that warms up
SLOW_STEP_S = 10.0  # a step that takes this long is timed once: noise is small beside it


def pretrain(config: Config, work: Work) -> Counts:
    prepare(device=config.device, threads=config.threads)
    tokens = open_tokens(work)
    shape = shape_of(config, vocab_size=tokens.vocab_size)
    split = tokens.split("train")
    if (largest := split.max_id()) >= tokens.vocab_size:
        raise InputError(f"{tokens.path}: holds id {largest}, but its vocabulary has {tokens.vocab_size}", hint=f"llmpipe verify {tokens.path}")
    run = make_run(config, shape, split, work.output)
    shape = _settle_steps(config, shape, run, work)
    assert shape.steps is not None
    model = run.model
    work.log.info("%s", summary(shape, len(split)))
    run = make_run(config, shape, split, work.output, model=_initial(config, shape, model), peak=peak_flops(config.device, config.dtype))
    valid = tokens.split("valid")
    evaluate = make_evaluate(model, valid, tokens.token_bytes(), config, shape) if len(valid) > 1 else None
    if evaluate is None:
        work.log.warning("%s has no valid split, so there is no val_bpb; tokenize with a larger valid_fraction", tokens.path)
    run = _with(run, evaluate=evaluate, progress=work.progress.update)
    final = train(run)
    if sources := run.samples.counts(shape.steps * shape.batch_size):
        work.info.update(samples_by_source=sources, epochs_by_source={k: round(v, 4) for k, v in run.samples.epochs(shape.steps * shape.batch_size).items()})
    _write(config, shape, work, model, tokens, final)
    return Counts(read=shape.steps * shape.batch_size, kept=shape.steps * shape.batch_size, extra={"tokens": shape.steps * shape.tokens_per_step})


def open_tokens(work: Work) -> TokensDir:
    return tokens_module.open_tokens([given.path for given in work.inputs])


def summary(shape: Shape, num_tokens: int) -> str:
    """One line for a person: what will be trained on what for how long."""
    assert shape.steps is not None
    seen = shape.steps * shape.tokens_per_step
    return (
        f"{shape.num_params / 1e6:.1f} M parameters ({shape.num_layers} layers of {shape.dim}), {shape.steps:,} steps of {shape.tokens_per_step:,} tokens: "
        f"{seen / 1e6:.1f} M tokens, {seen / max(num_tokens, 1):.1f} epochs, {seen / shape.num_params:.1f} a parameter"
    )


def make_run(config: Config, shape: Shape, split: TokenSplit, output: Path, *, model: Transformer | None = None, peak: float | None = None) -> Run:
    """Put together what the loop needs."""
    model = model or _initial(config, shape, None)
    objective = OBJECTIVES[config.objective]()
    steps = shape.steps or 1
    return Run(
        model=model,
        optimizers=make_optimizers(model, config.optim, name=config.optimizer, lr=config.lr or default_lr(config.optimizer, shape.num_params)),
        samples=make_samples(split, config.mixture, window=objective.window(shape.seq_len), seed=config.seed, num_samples=steps * shape.batch_size),
        objective=objective,
        steps=steps,
        batch_size=shape.batch_size,
        micro_batch=shape.micro_batch,
        schedule=partial(schedule, config=config.schedule, steps=steps),
        clip_norm=config.optim.clip_norm,
        device=config.device,
        dtype=config.dtype,
        output=output,
        log_every=config.log_every,
        eval_every=config.eval_every or max(1, math.ceil(steps / NUM_EVALUATIONS)),
        checkpoint_every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        max_hours=config.max_hours,
        flops_per_token=shape.flops_per_token,
        peak_flops=peak,
    )


def _with(run: Run, **changes: object) -> Run:
    from dataclasses import replace

    return replace(run, **changes)  # type: ignore[arg-type]


def _initial(config: Config, shape: Shape, model: Transformer | None) -> Transformer:
    """Make the model, or reset the one that a probe has trained, from the seed. Drawn on the CPU: the same on every device."""
    if model is None:
        model = Transformer(
            ModelConfig(
                vocab_size=shape.vocab_size, num_layers=shape.num_layers, dim=shape.dim, num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads,
                head_dim=shape.head_dim, ffn_dim=shape.ffn_dim, rope_theta=config.model.rope_theta, qk_norm=config.model.qk_norm,
                tie_embeddings=config.model.tie_embeddings, max_seq_len=shape.seq_len,
            )
        )
        assert sum(p.numel() for p in model.parameters()) == shape.num_params
        if config.compile:
            model.compile()
    model.to("cpu").initialize(torch.Generator().manual_seed(config.seed))
    return model.to(config.device)


# --- hours ----------------------------------------------------------------------------------------------------------


def _settle_steps(config: Config, shape: Shape, run: Run, work: Work) -> Shape:
    """Turn `hours` into steps by timing a few, once; a resumed run reads what the first one found."""
    if shape.steps is not None:
        return shape
    path = work.output / "state" / "horizon.json"
    if not path.is_file():
        seconds = seconds_per_step(run)
        assert config.hours is not None
        write_json(path, {"hours": config.hours, "seconds_per_step": seconds, "steps": max(1, int(config.hours * 3600 / seconds))})
        work.log.info("a step takes %.3g s, so %g hours are %s steps", seconds, config.hours, f"{read_json(path)['steps']:,}")
    return with_steps(shape, read_json(path)["steps"])


def seconds_per_step(run: Run) -> float:
    """Time a few steps of a run; its model is trained by them and must be made anew."""
    warmed = time.perf_counter()
    step(run, state := State())
    times: list[float] = []
    for _ in range(PROBE_STEPS if time.perf_counter() - warmed < SLOW_STEP_S else 1):
        start = time.perf_counter()
        step(run, state)
        if run.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


# --- evaluation and the end -----------------------------------------------------------------------------------------


def make_evaluate(model: Transformer, valid: TokenSplit, token_bytes: np.ndarray, config: Config, shape: Shape) -> Callable[[], dict[str, float]]:
    """Score the start of the valid split in windows side by side: val_loss (nats a token) and val_bpb (bits a byte of text).

    Tokens that stand for no text (the end of a document) count neither nats nor bytes, as in `llmpipe eval`, whose
    strided windows see more context and so score a little better.
    """
    total = min(len(valid), config.eval_tokens + 1)
    ids = valid.window(0, total)
    windows = []
    for start in range(0, total - 1, shape.seq_len):
        part = ids[start : start + shape.seq_len + 1]
        windows.append((torch.from_numpy(part[:-1]), torch.from_numpy(np.where(token_bytes[part[1:]] > 0, part[1:], IGNORE))))
    scored = ids[1:][token_bytes[ids[1:]] > 0]
    num_tokens, num_bytes = len(scored), int(token_bytes[scored].sum())

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        model.eval()
        nats = 0.0
        whole = [w for w in windows if len(w[0]) == shape.seq_len]
        groups = [whole[i : i + shape.micro_batch] for i in range(0, len(whole), shape.micro_batch)] + [[w] for w in windows[len(whole) :]]
        for group in groups:
            inputs, targets = (torch.stack(t).to(config.device) for t in zip(*group, strict=True))
            with autocast(config.device, config.dtype):
                nats += float(model(inputs, targets))
        return {"val_loss": nats / max(num_tokens, 1), "val_bpb": nats / math.log(2) / max(num_bytes, 1)}

    return evaluate


def _write(config: Config, shape: Shape, work: Work, model: Transformer, tokens: TokensDir, final: State) -> None:
    assert shape.steps is not None
    for path in save_model(work.output, model, tokenizer=tokens.tokenizer):
        work.add_file(path)
    work.info.update(
        parameters=shape.num_params,
        steps=shape.steps,
        tokens=shape.steps * shape.tokens_per_step,
        flops=shape.steps * shape.tokens_per_step * shape.flops_per_token,
        epochs=round(shape.steps * shape.tokens_per_step / max(len(tokens.split("train")), 1), 3),
        **final.evaluation,
        **({"skipped_steps": final.skipped} if final.skipped else {}),
    )
