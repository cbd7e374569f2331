"""What a pretraining run would cost, before it starts: `llmpipe pretrain ... --dry-run`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llmpipe.data.tokens import TokenSplit
from llmpipe.pretrain.job import make_run, open_tokens, seconds_per_step
from llmpipe.pretrain.shape import Shape, shape_of, with_steps
from llmpipe.pretrain.stage import Config
from llmpipe.training.batches import make_samples
from llmpipe.training.compute import peak_flops, prepare
from llmpipe.work import Work

PROBE_FLOPS = 5e11
"""Operations of one forward and backward pass of the probe on a CPU: a few seconds at most, however large the model."""


def plan_run(config: Config, work: Work) -> dict[str, Any]:
    """Count and probe. Nothing is written: the probe trains a model in memory and drops it."""
    prepare(device=config.device, threads=config.threads)
    tokens = open_tokens(work)
    split = tokens.split("train")
    shape = shape_of(config, vocab_size=tokens.vocab_size)
    seconds = _probe(config, shape, split)
    if shape.steps is None:
        assert config.hours is not None
        shape = with_steps(shape, int(config.hours * 3600 / seconds))
    assert shape.steps is not None
    seen = shape.steps * shape.tokens_per_step
    peak = peak_flops(config.device, config.dtype)
    speed = shape.tokens_per_step / seconds
    samples = make_samples(split, config.mixture, window=shape.seq_len + 1, seed=config.seed, num_samples=shape.steps * shape.batch_size)
    counts = samples.counts(shape.steps * shape.batch_size)
    mixed = {"mixture": {n: {"tokens": c * shape.seq_len, "epochs": round(e, 2)} for (n, c), e in zip(counts.items(), samples.epochs(shape.steps * shape.batch_size).values(), strict=True)}} if counts else {}
    return {
        **mixed,
        "parameters": {"all": shape.num_params, "embedding_and_head": shape.num_embedding, "blocks": shape.num_params - shape.num_embedding},
        "model": {"num_layers": shape.num_layers, "dim": shape.dim, "num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads, "ffn_dim": shape.ffn_dim, "seq_len": shape.seq_len},
        "steps": shape.steps,
        "tokens": {"seen": seen, "in_train": len(split), "epochs": round(seen / max(len(split), 1), 2), "per_parameter": round(seen / shape.num_params, 2), "per_step": shape.tokens_per_step},
        "flops": {"per_token": shape.flops_per_token, "all": seen * shape.flops_per_token, "formula": "6 x multiplying parameters + 12 x layers x width x context, a token"},
        "memory_mb": {k: round(v / 1e6, 1) for k, v in memory_bytes(config, shape).items()},
        "device": config.device,
        "dtype": config.dtype,
        "threads": config.threads,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_s": round(speed),
        "mfu": round(speed * shape.flops_per_token / peak, 3) if peak else None,
        "hours": round(shape.steps * seconds / 3600, 3),
    }


def _probe(config: Config, shape: Shape, split: TokenSplit) -> float:
    """Estimate the seconds of a step from steps of one and of two passes: their difference is a pass, the rest the optimizer.

    Nothing is compiled on a CPU for it: that takes minutes for a large model, and a plan is asked for in order to wait less.
    """
    micro = shape.micro_batch
    if config.device == "cpu":
        config = replace(config, compile=False)
        micro = max(1, min(micro, int(PROBE_FLOPS / (shape.flops_per_token * shape.seq_len))))
    passes = shape.batch_size / micro
    run = make_run(config, replace(shape, batch_size=micro, micro_batch=micro), split, Path("/nonexistent"))
    one = seconds_per_step(run)
    if passes <= 1:
        return one
    two = seconds_per_step(replace(run, batch_size=2 * micro))
    return one + (passes - 1) * max(two - one, one / 2)  # a noisy machine must not make a pass free


def memory_bytes(config: Config, shape: Shape) -> dict[str, float]:
    """Estimate what training holds at its peak: fp32 weights, gradients and moments, and one micro-batch's activations."""
    width = 2 if config.dtype == "bf16" else 4
    moments = 2 * shape.num_embedding + (shape.num_params - shape.num_embedding) * (1 if config.optimizer == "muon" else 2)
    micro_tokens = shape.micro_batch * shape.seq_len
    # A block keeps for its backward pass about 12 tensors of the stream's width, 5 of the SwiGLU's, and, on a CPU, the scores.
    block = micro_tokens * (12 * shape.dim + 5 * shape.ffn_dim) * width
    if config.device == "cpu":
        block += 2 * micro_tokens * shape.seq_len * shape.num_heads * width
    parts = {
        "weights": 4.0 * shape.num_params,
        "gradients": 4.0 * shape.num_params,
        "optimizer": 4.0 * moments,
        "low_precision_weights": 2.0 * shape.num_params if config.dtype == "bf16" else 0.0,
        "activations": float(block * shape.num_layers),
    }
    return {**parts, "all": sum(parts.values())}
