"""What a pretraining run would cost, before it starts: `llmpipe pretrain ... --dry-run`.

Parameters, operations and memory by arithmetic; time by a few real steps here (one forward and backward pass at least, which
also shows that the run works), and by peak x assumed MFU on devices that are not at hand.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmpipe.data.tokens import TokenSplit
from llmpipe.errors import UsageError
from llmpipe.pretrain.job import empty_model, make_run, open_tokens, seconds_per_step, shape_for_hours
from llmpipe.pretrain.shape import Shape, fitting_objective, shape_of
from llmpipe.pretrain.stage import DEFAULT_TOKENS_PER_PARAM, Config
from llmpipe.training.batches import make_samples
from llmpipe.training.compute import DEVICES, free_memory, known_device, peak_flops, prepare
from llmpipe.training.objectives import OBJECTIVES
from llmpipe.training.parallel import blocks
from llmpipe.work import Work

PROBE_FLOPS = 5e11
"""Operations of one forward and backward pass of the probe on a CPU: a few seconds at most, however large the model."""
CPU_WATTS = 65.0  # of a laptop or desktop processor at work; a server's socket takes 200 to 350
LOGITS_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}  # elements of one chunk of the head (models/linear_loss.py), in the dtype of training


def plan_run(config: Config, work: Work) -> dict[str, Any]:
    """Count and probe. Nothing is written: the probe trains a model in memory and drops it."""
    prepare(device=config.device, threads=config.threads)
    tokens = open_tokens(work)
    split = tokens.split("train")
    shape = shape_of(config, vocab_size=tokens.vocab_size)
    if shape.steps is None:
        shape, seconds, loss = shape_for_hours(replace(config, compile=config.compile and config.device == "cuda"), shape, split)
    else:
        seconds, loss = _probe(config, shape, split)
    assert shape.steps is not None
    memory = memory_bytes(config, shape)
    seen = shape.steps * shape.tokens_per_step
    peak = peak_flops(config.device, config.dtype)
    speed = shape.tokens_per_step / seconds
    free = free_memory(config.device)
    overlap = OBJECTIVES[fitting_objective(config)].overlap
    samples = make_samples(split, config.mixture, window=shape.sample_tokens + overlap, seed=config.seed, num_samples=shape.steps * shape.batch_size, overlap=overlap)
    counts = samples.counts(shape.steps * shape.batch_size)
    mixed = {"mixture": {n: {"tokens": c * shape.sample_tokens, "epochs": round(e, 2)} for (n, c), e in zip(counts.items(), samples.epochs(shape.steps * shape.batch_size).values(), strict=True)}} if counts else {}
    return {
        **mixed,
        "parameters": parameters_by_group(config, shape),
        "model": {"num_layers": shape.num_layers, "dim": shape.dim, "num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads, "ffn_dim": shape.ffn_dim, "seq_len": shape.seq_len},
        "steps": shape.steps,
        "tokens": {
            "seen": seen,
            "in_train": len(split),
            "epochs": round(seen / max(len(split), 1), 2),
            "per_parameter": round(seen / shape.num_params, 2),
            "of_chinchilla": round(seen / shape.num_params / DEFAULT_TOKENS_PER_PARAM, 3),
            "per_step": shape.tokens_per_step,
        },
        "flops": {"per_token": shape.flops_per_token, "all": seen * shape.flops_per_token, "formula": "6 x multiplying parameters + 12 x layers x width x context, a token"},
        "memory_mb": {k: round(v / 1e6, 1) for k, v in memory.items()},
        **({"free_memory_mb": round(free / 1e6), "fits": memory["all"] < free} if free else {}),
        "micro_batch": shape.micro_batch,
        "checked": f"forward, backward and step ran here, loss {loss:.3f}",
        "device": config.device,
        "dtype": config.dtype,
        "threads": config.threads,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_s": round(speed),
        "mfu": round(speed * shape.flops_per_token / peak, 3) if peak else None,
        "hours": round(shape.steps * seconds / 3600, 3),
        "devices": devices_table(config, shape, hours_here=shape.steps * seconds / 3600, memory=memory["all"]),
        "assumed": f"devices that are not at hand: dense peak x {config.cost.mfu:g} (cost.mfu), prices from cost.usd_per_hour"
        + ("" if config.cost.grid_g_per_kwh is None else f", {config.cost.grid_g_per_kwh:g} g CO2 a kWh x {config.cost.overhead:g} for the site"),
    }


def parameters_by_group(config: Config, shape: Shape) -> dict[str, int]:
    """Count by what the parameters do, on a model without memory of its own."""
    with torch.device("meta"):
        model = empty_model(config, shape)
    inside = {id(p) for block in blocks(model) for p in block.parameters()}
    groups = {"embedding_and_head": 0, "attention": 0, "feed_forward": 0, "norms_and_biases": 0}
    for name, p in model.named_parameters():
        kind = "norms_and_biases" if p.ndim < 2 else "embedding_and_head" if id(p) not in inside else "attention" if "attn" in name or "attention" in name else "feed_forward"
        groups[kind] += p.numel()
    return {"all": sum(groups.values()), **{k: v for k, v in groups.items() if v}}


def devices_table(config: Config, shape: Shape, *, hours_here: float, memory: float) -> list[dict[str, Any]]:
    """Hours, money and CO2 of the whole run: on this machine as measured, on one of each device with a price as assumed."""
    assert shape.steps is not None
    flops = shape.steps * shape.tokens_per_step * shape.flops_per_token
    prices = config.cost.usd_per_hour
    here = known_device() if config.device == "cuda" else None
    rows = [_device_row(config, "this " + (here or ("GPU" if config.device == "cuda" else "CPU")), hours_here, DEVICES[here].watts if here else CPU_WATTS, prices.get("this", prices.get(here or "")), True, "measured")]
    for name, price in prices.items():
        if name == "this":
            continue
        if name not in DEVICES:
            raise UsageError(f"cost.usd_per_hour: {name!r} is not a known device", hint=f"known: this, {', '.join(DEVICES)}")
        device = DEVICES[name]
        rows.append(_device_row(config, name, flops / (device.peak * config.cost.mfu) / 3600, device.watts, price, memory < device.memory, f"{device.peak / 1e12:g} TFLOP/s {device.dtype} x {config.cost.mfu:g}"))
    return rows


def _device_row(config: Config, name: str, hours: float, watts: float, price: float | None, fits: bool, basis: str) -> dict[str, Any]:
    row: dict[str, Any] = {"device": name, "hours": _short(hours), "usd": None if price is None else _short(hours * price), "fits": fits, "basis": basis}
    if config.cost.grid_g_per_kwh is not None:
        kwh = hours * watts / 1000 * config.cost.overhead
        row |= {"kwh": _short(kwh), "co2_kg": _short(kwh * config.cost.grid_g_per_kwh / 1000)}
    return row


def _short(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")


def _probe(config: Config, shape: Shape, split: TokenSplit) -> tuple[float, float]:
    """Estimate the seconds of a step from steps of one and of two passes: their difference is a pass, the rest the optimizer. Also a loss.

    Nothing is compiled on a CPU for it: that takes minutes for a large model, and a plan is asked for in order to wait less.
    """
    micro = shape.micro_batch
    if config.device == "cpu":
        config = replace(config, compile=False)
        micro = max(1, min(micro, int(PROBE_FLOPS / (shape.flops_per_token * shape.seq_len))))
    passes = shape.batch_size / micro
    run = make_run(config, replace(shape, batch_size=micro, micro_batch=micro), split, Path("/nonexistent"))
    one, loss = seconds_per_step(run)
    if passes <= 1:
        return one, loss
    two, _ = seconds_per_step(replace(run, batch_size=2 * micro))
    return one + (passes - 1) * max(two - one, one / 2), loss  # a noisy machine must not make a pass free


def memory_bytes(config: Config, shape: Shape) -> dict[str, float]:
    """Estimate what training holds at its peak on one device: fp32 weights, gradients and moments, and one micro-batch's activations."""
    width = 4 if config.dtype == "fp32" else 2
    moments = 2 * shape.num_embedding + (shape.num_params - shape.num_embedding) * (1 if config.optimizer == "muon" else 2)
    micro_tokens = shape.micro_batch * shape.seq_len
    # A block keeps for its backward pass about 12 tensors of the stream's width, 5 of the SwiGLU's, and, on a CPU, the scores.
    block = micro_tokens * (12 * shape.dim + 5 * shape.ffn_dim) * width
    if config.device == "cpu":
        block += 2 * micro_tokens * shape.seq_len * shape.num_heads * width
    kept = micro_tokens * shape.dim * width  # of a block whose activations are computed again: its input
    layers = shape.num_layers + shape.model.num_decoder_layers
    activations = block + kept * (layers - 1) if config.checkpoint_activations else block * layers
    chunk = min(micro_tokens * shape.vocab_size, max(LOGITS_ELEMENTS[config.device], shape.vocab_size)) * width
    parts = {
        "weights": 4.0 * shape.num_params,
        "gradients": 4.0 * shape.num_params,
        "optimizer": 4.0 * moments,
        "low_precision_weights": 0.0 if config.dtype == "fp32" else 2.0 * shape.num_params,
        "activations": float(activations),
        # The head works on chunks of tokens: one chunk's logits, and the gradients of its input and its matrix.
        "logits": float(chunk) + 4.0 * shape.vocab_size * shape.dim + micro_tokens * shape.dim * width,
    }
    return {**parts, "all": sum(parts.values())}
