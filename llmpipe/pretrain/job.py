"""One pretraining run, from token shards to a Hugging Face directory.

    counts = pretrain(config, work)          # what `llmpipe pretrain` calls

What it does, in order: open the tokens, make the model from the seed, turn `hours` into steps, train (training/loop.py),
write the model.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmpipe.data import tokens as tokens_module
from llmpipe.data.files import atomic_write, read_json, write_json
from llmpipe.data.tokens import TokensDir, TokenSplit
from llmpipe.errors import InputError, UsageError
from llmpipe.models.hf import load_model, load_tokenizer, save_model
from llmpipe.models.linear_loss import IGNORE, linear_cross_entropy
from llmpipe.models.regularized_loss import regularized_cross_entropy
from llmpipe.models.transformer import Transformer
from llmpipe.pretrain.curves import curves
from llmpipe.pretrain.shape import MIN_BATCH_TOKENS, MIN_STEPS, Shape, fitting_objective, shape_of, with_steps
from llmpipe.pretrain.stage import Config
from llmpipe.pretrain.validation import evaluate_objective
from llmpipe.training.batches import make_samples
from llmpipe.training.compute import autocast, equip, free_memory, peak_flops, prepare
from llmpipe.training.loop import OutOfMemory, Run, State, step, train
from llmpipe.training.metrics import read_metrics, trackers
from llmpipe.training.objectives import make_objective
from llmpipe.training.optim import default_lr, make_optimizers, schedule
from llmpipe.training.parallel import World, join, reshard, shard, whole_state
from llmpipe.training.settings import OptimizerConfig
from llmpipe.work import Counts, Work

NUM_EVALUATIONS = 10
MAX_POST_NORM_LR = 2e-3  # of a BERT with 150,000 parameters, whose tables would get 0.02: loss 2.8 in place of 3.4 after 400 steps
PROBE_STEPS = 3  # after one that warms up
SLOW_STEP_S = 10.0  # a step that takes this long is timed once: noise is small beside it
MAX_GROUPS = 20  # languages or sources in a line of metrics


def pretrain(config: Config, work: Work) -> Counts:
    prepare(device=config.device, threads=config.threads)
    world = join(device=config.device)
    tokens = open_tokens(work)
    if config.init is not None:
        check_vocabulary(config.init, tokens.tokenizer)
    shape = shape_of(config, vocab_size=tokens.vocab_size)
    if shape.batch_size % world.size:
        raise UsageError(f"{shape.batch_size} sequences a step are not divisible among {world.size} processes", hint=f"set batch_tokens to a multiple of {world.size * shape.seq_len}")
    split = tokens.split("train")
    if (largest := split.max_id()) >= tokens.vocab_size:
        raise InputError(f"{tokens.path}: holds id {largest}, but its vocabulary has {tokens.vocab_size}", hint=f"llmpipe verify {tokens.path}")
    shape = _settle_micro_batch(config, shape, split, work, world)
    shape = _settle_steps(config, shape, split, work, world)
    assert shape.steps is not None
    work.log.info("%s", summary(shape, len(split)))
    if world.size > 1:
        work.log.info("%d processes, %d sequences a step each", world.size, shape.batch_size // world.size)
    run = make_run(config, shape, split, work.output, world=world, peak=peak_flops(config.device, config.dtype))
    valid = tokens.split("valid")
    if config.objective == "clm":
        evaluate = make_evaluate(run.model, valid, tokens.token_bytes(), config, shape, world) if len(valid) > 1 else None
    else:
        evaluate = evaluate_objective(run, valid, config, shape)
    if evaluate is None:
        work.log.warning("%s has too little in its valid split to evaluate on; tokenize with a larger valid_fraction", tokens.path)
    sinks = partial(trackers, config.track, work.output, title=work.output.name)
    run = replace(run, evaluate=evaluate, sample=make_sample(config, run.model, tokens, work.output, world), progress=work.progress.update, sinks=sinks)
    final = train(run)
    if sources := run.samples.counts(shape.steps * shape.batch_size):
        work.info.update(samples_by_source=sources, epochs_by_source={k: round(v, 4) for k, v in run.samples.epochs(shape.steps * shape.batch_size).items()})
    _write(config, shape, work, run.model, tokens, final, world)
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


def make_run(config: Config, shape: Shape, split: TokenSplit, output: Path, *, world: World = World(), peak: float | None = None) -> Run:
    """Put together what the loop needs: the model from the seed, equipped and sharded, then its optimizers."""
    model = make_model(config, shape, separator=split.eos_id)
    equip(model, device=config.device, dtype=config.dtype, checkpoint_activations=config.checkpoint_activations, compiled=bool(config.compile))
    shard(model, world, device=config.device, dtype=config.dtype)
    objective = make_objective(config.objective or fitting_objective(config), noise=config.noise, seed=config.seed, tokenizer=Path(split.path) / "tokenizer")
    steps = shape.steps or 1
    return Run(
        model=model,
        optimizers=make_optimizers(model, _optimizer(config, shape), name=config.optimizer, lr=config.lr or default_lr(config.optimizer, shape.num_params), dtype=config.dtype),
        samples=make_samples(split, config.mixture, window=objective.window(shape.seq_len), seed=config.seed, num_samples=steps * shape.batch_size, overlap=objective.overlap),
        objective=objective,
        steps=steps,
        batch_size=shape.batch_size,
        micro_batch=shape.micro_batch,
        schedule=partial(schedule, config=config.schedule, steps=steps),
        clip_norm=config.optim.clip_norm,
        l1=config.optim.l1,
        l2=config.optim.l2,
        device=config.device,
        dtype=config.dtype,
        output=output,
        seed=config.seed,
        world=world,
        log_every=config.log_every,
        eval_every=config.eval_every or max(1, math.ceil(steps / NUM_EVALUATIONS)),
        checkpoint_every=config.checkpoint_every,
        keep=config.keep_checkpoints,
        background=config.device == "cuda",  # on a CPU writing would only compete with training
        max_hours=config.max_hours,
        flops_per_token=shape.flops_per_token,
        peak_flops=peak,
    )


def _optimizer(config: Config, shape: Shape) -> OptimizerConfig:
    """Lower the rate that Muon's runs give to all but the blocks' matrices in post-norm models, whose norms and biases drift at the one that suits tables."""
    if shape.model.norm_place == "pre" or config.optim.embed_lr is not None:
        return config.optim
    return replace(config.optim, embed_lr=min(MAX_POST_NORM_LR, default_lr("adamw", shape.num_params)))


def make_model(config: Config, shape: Shape, *, separator: int | None = None) -> Transformer:
    """Make the model from the seed, or from `init`. Drawn on the CPU: the same on every device and any number of processes."""
    if config.init is None:
        model = empty_model(config, shape)
        assert sum(p.numel() for p in model.parameters()) == shape.num_params
        model.initialize(torch.Generator().manual_seed(config.seed))
    else:
        loaded, found = load_model(config.init)
        model = Transformer(replace(found, dropout=shape.model.dropout, attention_dropout=shape.model.attention_dropout))
        model.load_state_dict(loaded.state_dict())
    if config.loss.label_smoothing or config.loss.z_loss:
        model.training_loss = partial(regularized_cross_entropy, label_smoothing=config.loss.label_smoothing, z_loss=config.loss.z_loss)
    model.model.separator = separator if config.doc_mask else None
    return model.to(config.device)


def empty_model(config: Config, shape: Shape) -> Transformer:
    return Transformer(shape.model)


def check_vocabulary(init: Path, tokenizer: Path) -> None:
    """Refuse to train a model on tokens that another tokenizer made: each id would mean something else."""
    model, tokens = (load_tokenizer(path).get_vocab() for path in (init, tokenizer))
    if model == tokens:
        return
    wrong = next((t for t in sorted(tokens, key=tokens.__getitem__) if model.get(t) != tokens[t]), None)
    example = f"id {tokens[wrong]} is {wrong!r} in the tokens, and {load_tokenizer(init).id_to_token(tokens[wrong])!r} for the model" if wrong is not None else f"{len(model):,} entries beside {len(tokens):,}"
    raise InputError(f"{init}: its tokenizer is not the one that made the tokens ({example})", hint=f"llmpipe tokenize --tokenizer {init} makes tokens for this model")


# --- what is tried out at the start, once, and stored ----------------------------------------------------------------


def _settle_micro_batch(config: Config, shape: Shape, split: TokenSplit, work: Work, world: World) -> Shape:
    """Limit the micro-batch to what a process has of a step; with `auto` find the largest that fits, by trying."""
    from llmpipe.pretrain.plan import memory_bytes

    shape = replace(shape, micro_batch=min(shape.micro_batch, shape.batch_size // world.size))
    if config.micro_batch != "auto":
        needed, free = memory_bytes(config, shape)["all"], free_memory(config.device)
        if world.size == 1 and free and needed > free:
            work.log.warning("this takes about %.1f GB and %.1f GB are free: try --set micro_batch=%d, or auto", needed / 1e9, free / 1e9, max(1, shape.micro_batch // 2))
        return shape
    if world.size > 1:
        raise UsageError("micro_batch: auto tries sizes until memory runs out, which several processes cannot do together", hint="try it with one process, then give the number")
    path = work.output / "state" / "micro_batch.json"
    if not path.is_file():
        size = fitting_micro_batch(config, replace(shape, micro_batch=shape.batch_size), split)
        write_json(path, {"micro_batch": size})
        work.log.info("micro_batch auto: %d sequences of %d tokens at a time", size, shape.seq_len)
    return replace(shape, micro_batch=read_json(path)["micro_batch"])


def fitting_micro_batch(config: Config, shape: Shape, split: TokenSplit) -> int:
    """Halve the micro-batch until a step of it fits; what the estimate says cannot fit is not tried."""
    from llmpipe.pretrain.plan import memory_bytes

    size, free = shape.micro_batch, free_memory(config.device)
    while size > 1 and free and memory_bytes(config, replace(shape, micro_batch=size))["all"] > free:
        size //= 2
    while True:
        run = make_run(config, replace(shape, batch_size=size, micro_batch=size), split, Path("/nonexistent"))
        try:
            step(run, State())
            return size
        except OutOfMemory:
            if size == 1:
                raise
            size //= 2


def _settle_steps(config: Config, shape: Shape, split: TokenSplit, work: Work, world: World) -> Shape:
    """Turn `hours` into steps, and a batch that leaves enough of them, by timing a few, once; a resumed run reads what the first one found."""
    if shape.steps is not None:
        return shape
    path = work.output / "state" / "horizon.json"
    (known,) = world.first([float(path.is_file())])
    if not known:
        found, seconds, _ = shape_for_hours(config, shape, split, world=world)
        if world.leads:
            write_json(path, {"hours": config.hours, "seconds_per_step": seconds, "steps": found.steps, "batch_size": found.batch_size})
            work.log.info("a step takes %.3g s, so %g hours are %s steps", seconds, config.hours, f"{found.steps:,}")
    stored = read_json(path) if world.leads else {"steps": 0, "batch_size": 0}
    steps, batch_size = (int(v) for v in world.first([float(stored["steps"]), float(stored["batch_size"])]))
    return with_steps(replace(shape, batch_size=batch_size, micro_batch=min(shape.micro_batch, batch_size // world.size)), steps)


def shape_for_hours(config: Config, shape: Shape, split: TokenSplit, *, world: World = World()) -> tuple[Shape, float, float]:
    """Return the shape that fills `hours` here, the seconds of its step and a first loss.

    A batch that is left to us is halved, as for a number of tokens, where the time would hold fewer than 500 steps of it.
    """
    assert config.hours is not None
    while True:
        seconds, loss = seconds_per_step(make_run(config, shape, split, Path("/nonexistent"), world=world))
        (seconds,) = world.first([seconds])  # all must come to the same end
        steps = int(config.hours * 3600 / seconds)
        halves = 0
        while config.batch_tokens is None and steps << halves < MIN_STEPS and shape.tokens_per_step >> halves >= 2 * MIN_BATCH_TOKENS and (shape.batch_size >> halves) % (2 * world.size) == 0:
            halves += 1
        if not halves:
            return with_steps(shape, steps), seconds, loss
        size = shape.batch_size >> halves
        shape = replace(shape, batch_size=size, micro_batch=min(shape.micro_batch, size // world.size))


def seconds_per_step(run: Run) -> tuple[float, float]:
    """Time a few steps of a run, whose model is trained by them and must be made anew. Also return the first one's loss."""
    warmed = time.perf_counter()
    step(run, state := State())
    loss = state.loss_sum
    (slow,) = run.world.first([float(time.perf_counter() - warmed >= SLOW_STEP_S)])  # all take as many steps
    times: list[float] = []
    for _ in range(1 if slow else PROBE_STEPS):
        start = time.perf_counter()
        step(run, state)
        if run.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2], loss


# --- evaluation and the end -----------------------------------------------------------------------------------------


def make_evaluate(model: Transformer, valid: TokenSplit, token_bytes: np.ndarray, config: Config, shape: Shape, world: World = World()) -> Callable[[], dict[str, Any]]:
    """Score the start of the valid split in windows side by side: val_loss (nats a token) and val_bpb (bits a byte of text).

    Tokens that stand for no text (the end of a document) count neither nats nor bytes, as in `llmpipe eval`, whose
    strided windows see more context and so score a little better. Where the documents are of several languages or
    sources, `val_bpb_by` has each: a document's row in .docs.parquet says which its tokens are. Processes share the windows.
    """
    total = min(len(valid), config.eval_tokens + 1)
    ids = valid.window(0, total)
    targets = np.where(token_bytes[ids[1:]] > 0, ids[1:], IGNORE)
    names, group = _groups(valid, total)
    sizes = np.bincount(group, weights=token_bytes[ids[1:]] * (targets != IGNORE), minlength=len(names))
    num_tokens = int((targets != IGNORE).sum())
    starts = list(range(0, total - 1, shape.seq_len))
    whole = [s for s in starts if s + shape.seq_len <= total - 1]
    batches = [whole[i : i + shape.micro_batch] for i in range(0, len(whole), shape.micro_batch)] + [[s] for s in starts[len(whole) :]]
    while len(batches) % world.size:
        batches.append([])  # sharded weights are gathered together: each process must pass as often

    @torch.no_grad()
    def evaluate() -> dict[str, Any]:
        model.eval()
        nats = np.zeros(len(names))
        for places in batches[world.rank :: world.size]:
            rows = [slice(s, min(s + shape.seq_len, total - 1)) for s in places] or [slice(0, 1)]
            inputs, wanted, of = (torch.from_numpy(np.stack([a[r] for r in rows])).to(config.device) for a in (ids, targets, group))
            with autocast(config.device, config.dtype):
                hidden = model.hidden(inputs)
                for number in np.unique(of.cpu()) if places else ():
                    chosen = of == int(number)  # each token passes through the head once, whatever the number of groups
                    nats[number] += float(linear_cross_entropy(hidden[chosen], model.output_weight(), wanted[chosen]))
        reshard(model, world)
        nats = np.array(world.sum(nats.tolist()))
        bits = nats.sum() / math.log(2)
        by = {field: _bits_by(field, names, nats, sizes) for field in ("language", "source")}
        scores: dict[str, Any] = {"val_loss": nats.sum() / max(num_tokens, 1), "val_bpb": bits / max(sizes.sum(), 1)}
        return {**scores, **({"val_bpb_by": shown} if (shown := {k: v for k, v in by.items() if len(v) > 1}) else {})}

    return evaluate


def _groups(valid: TokenSplit, total: int) -> tuple[list[dict[str, str]], np.ndarray]:
    """Number the pairs of language and source, and say which one each target of the window [0, total) is of."""
    numbers: dict[tuple[str, str], int] = {}
    group = np.zeros(total, dtype=np.int64)
    for row in valid.lineage(0, total):
        key = row["language"] or "unknown", row["source"] or "unknown"
        group[row["start"] : row["stop"]] = numbers.setdefault(key, len(numbers))
    return [{"language": language, "source": source} for language, source in numbers], group[1:]


def _bits_by(field: str, names: list[dict[str, str]], nats: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Add groups up that share a language or source; the largest of them, by bytes."""
    totals: dict[str, list[float]] = {}
    for name, n, size in zip(names, nats, sizes, strict=True):
        entry = totals.setdefault(name[field], [0.0, 0.0])
        entry[0], entry[1] = entry[0] + n, entry[1] + size
    largest = sorted(totals, key=lambda k: (-totals[k][1], k))[:MAX_GROUPS]
    return {k: totals[k][0] / math.log(2) / totals[k][1] for k in sorted(largest) if totals[k][1]}


def make_sample(config: Config, model: Transformer, tokens: TokensDir, output: Path, world: World) -> Callable[[int], None] | None:
    """Continue the config's prompts at a step, each time with the same draws, into samples/pretrain.jsonl."""
    if not config.sample_prompts or not config.sample_tokens or config.objective != "clm":
        return None
    from llmpipe.evaluate.generate import Config as Settings
    from llmpipe.evaluate.sampling import Sampler
    from llmpipe.models.hf import special_ids

    ids = special_ids(tokens.tokenizer)
    sampler = Sampler(model, load_tokenizer(tokens.tokenizer), start=ids.get("bos_token_id", tokens.eos_id), stop=ids.get("eos_token_id", tokens.eos_id))
    settings = Settings(max_new_tokens=config.sample_tokens, seed=config.seed)
    path = output / "samples" / "pretrain.jsonl"

    def sample(step: int) -> None:
        model.eval()
        made = [(prompt, sampler.continue_text(prompt, settings, number=i)[0].text) for i, prompt in enumerate(config.sample_prompts)]
        reshard(model, world)
        if world.leads:
            kept = [r for r in read_metrics(path) if r["step"] < step]
            lines = [*kept, *({"step": step, "prompt": prompt, "text": text} for prompt, text in made)]
            atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    return sample


def _write(config: Config, shape: Shape, work: Work, model: Transformer, tokens: TokensDir, final: State, world: World) -> None:
    assert shape.steps is not None
    if world.size > 1:
        weights = whole_state(model, world)
        if not world.leads:
            return
        model = Transformer(model.config)
        model.load_state_dict(weights)
    for path in save_model(work.output, model, tokenizer=tokens.tokenizer):
        work.add_file(path)
    atomic_write(work.output / "curves.svg", curves(read_metrics(work.output / "metrics.jsonl"), title=work.output.name))
    happened = {"skipped_steps": final.skipped, "rollbacks": final.rollbacks, "spikes": final.spikes}
    work.info.update(
        parameters=shape.num_params,
        steps=shape.steps,
        tokens=shape.steps * shape.tokens_per_step,
        flops=shape.steps * shape.tokens_per_step * shape.flops_per_token,
        epochs=round(shape.steps * shape.tokens_per_step / max(len(tokens.split("train")), 1), 3),
        **final.evaluation,
        **{k: v for k, v in happened.items() if v},
    )
