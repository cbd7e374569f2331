"""Train, once per seed, keep the best, and write the finetuned model.

    finetune(config, work, data)      # called by the stage with what examples.prepare made

Writes the model at the root of the output, `adapter/` with LoRA, and a line per step in `metrics.jsonl`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

from llmpipe.data.files import atomic_write, sha256_file
from llmpipe.data.rows import Row
from llmpipe.finetune.examples import Data
from llmpipe.finetune.loop import Best, Plan, Result, train
from llmpipe.finetune.task import Encoder, Example, LossSettings, ScoreSettings, predict_rows
from llmpipe.models.heads import SequenceClassifier, save_classifier
from llmpipe.models.hf import load_model
from llmpipe.models.lora import add_lora, merge_lora, save_adapter
from llmpipe.work import Work

if TYPE_CHECKING:
    from llmpipe.finetune.stage import Config

SMALL = 30_000_000  # parameters below which a model takes, and needs, a ten times higher rate
MERGE_TOLERANCE = 1e-3


def finetune(config: Config, work: Work, data: Data) -> None:
    """Train one run per seed, write the best one, report all of them in the manifest."""
    directory = work.input("model").path
    encoder = Encoder.for_model(directory, labels=data.labels, max_length=config.max_length)
    examples = _encode(data, encoder, work)
    winner, values = Best(), {}
    for seed in range(config.seed, config.seed + config.seeds):
        candidate, outcome = _one_run(config, work, data, encoder, examples, seed, directory)
        values[str(seed)] = outcome.best.value
        work.log.info("finetune: seed %d: best valid %s %.4f at step %d", seed, config.metric, outcome.best.value, outcome.best.step)
        if winner.offer(outcome.best.value, seed, lower_is_better=config.metric == "loss") or len(values) == 1:
            model, result, chosen = candidate, outcome, seed
    base = sha256_file(directory / "model.safetensors") if (directory / "model.safetensors").is_file() else ""
    files = _write(config, work, model, data.labels, directory, base, encoder, _probe(data, examples, encoder, config.device))
    for path in files:
        work.add_file(path)
    work.add_file(work.output / "metrics.jsonl")
    work.info |= {
        "task": config.task,
        "parameters": sum(p.numel() for p in model.parameters()),
        f"valid_{config.metric}": result.best.value,
        "best_step": result.best.step,
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "seed": chosen,
        "base_sha256": base,
    }
    if len(values) > 1:
        work.info |= {"seeds": values, f"valid_{config.metric}_mean": mean(values.values()), f"valid_{config.metric}_sd": stdev(values.values())}


def _encode(data: Data, encoder: Encoder, work: Work) -> list[Example]:
    examples = []
    truncated = 0
    for row in data.parts["train"]:
        made = data.task.encode(row, encoder)
        truncated += sum(len(e.ids) == encoder.max_length for e in made)
        examples += made
    work.info |= {"truncated": truncated}
    if truncated:
        work.log.info("finetune: %s of %s training rows are cut off after %d tokens", f"{truncated:,}", f"{len(examples):,}", encoder.max_length)
    return examples


def _one_run(config: Config, work: Work, data: Data, encoder: Encoder, examples: list[Example], seed: int, directory: Path) -> tuple[SequenceClassifier, Result]:
    generator = torch.Generator().manual_seed(seed)
    body, model_config = load_model(directory)
    model = SequenceClassifier(model_config, num_labels=len(data.labels))
    model.load_body(body)
    model.initialize_head(generator)
    if config.lora.rank:
        add_lora(model, rank=config.lora.rank, alpha=config.lora.alpha or 2.0 * config.lora.rank, dropout=config.lora.dropout, targets=config.lora.targets, generator=generator)
        model.score.requires_grad_(True)
    model.to(config.device)
    plan = make_plan(config, data, examples, encoder, seed=seed, parameters=sum(p.numel() for p in model.parameters()))
    metrics = MetricsFile(work.output / "metrics.jsonl", seed)

    def log(line: dict[str, Any]) -> None:
        metrics.write(line)
        shown = {k: line[k] for k in ("loss", f"val_{config.metric}") if k in line}
        work.progress.update(line["step"], plan.steps, **({"seed": seed} if config.seeds > 1 else {}), **shown)

    def evaluate() -> dict[str, float]:
        return validate(data, model, encoder, config)

    result = train(data.task, model, examples, plan, evaluate=evaluate, folder=work.output / "checkpoints" / f"seed-{seed}", log=log, rewind=metrics.rewind)
    return model, result


def make_plan(config: Config, data: Data, examples: list[Example], encoder: Encoder, *, seed: int, parameters: int) -> Plan:
    """Turn epochs and shares into steps, and choose the learning rate where the config leaves it open."""
    per_epoch = max(1, math.ceil(len(examples) / config.batch_size))
    steps = max(1, round(config.epochs * len(examples) / config.batch_size))
    lr = config.lr or (5e-4 if parameters < SMALL else 5e-5) * (4 if config.lora.rank else 1)
    weights = None
    if config.class_weights == "balanced":
        counts = Counter(r["label"] for r in data.parts["train"])
        total = sum(counts.values())
        weights = torch.tensor([total / (len(counts) * counts[label]) for label in data.labels], device=config.device)
    return Plan(
        steps=steps,
        batch_size=config.batch_size,
        evaluate_every=max(1, per_epoch // config.evaluations_per_epoch),
        patience=config.patience,
        metric=config.metric,
        lower_is_better=config.metric == "loss",
        lr=lr,
        head_lr=min(lr * config.head_lr_factor, 1e-2),
        warmup_steps=math.ceil(steps * config.warmup_fraction),
        min_lr=0.05,
        weight_decay=0.0 if config.lora.rank else config.weight_decay,
        clip=config.clip,
        micro_batch_tokens=config.micro_batch_tokens,
        seed=seed,
        device=config.device,
        dtype=config.dtype,
        pad=encoder.pad,
        loss=LossSettings(class_weights=weights, label_smoothing=config.label_smoothing),
        log_every=config.log_every,
    )


def validate(data: Data, model: torch.nn.Module, encoder: Encoder, config: Config) -> dict[str, float]:
    """Score the valid part: loss, and the task's metrics without intervals."""
    rows: list[Row] = data.parts["valid"]
    predictions = predict_rows(data.task, model, rows, encoder, batch_tokens=config.micro_batch_tokens, device=config.device)
    scored = [(r, p) for r, p in zip(rows, predictions, strict=True) if p is not None]
    nll = [-math.log(max(float(p["probabilities"][encoder.labels[r["label"]]]), 1e-12)) for r, p in scored]
    scores = data.task.metrics([r for r, _ in scored], [p for _, p in scored], ScoreSettings(labels=data.labels, draws=0))
    named = {s.metric: s.value for s in scores if s.label is None}
    return {"loss": mean(nll), "accuracy": named["accuracy"], "macro_f1": named["macro_f1"]}


def _probe(data: Data, examples: list[Example], encoder: Encoder, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = data.task.collate(examples[:8], encoder.pad).to(device)
    return batch.ids, batch.lengths


def _write(config: Config, work: Work, model: SequenceClassifier, labels: list[str], source: Path, base: str, encoder: Encoder, probe: tuple[torch.Tensor, ...]) -> list[Path]:
    files = []
    if config.lora.rank:
        files = save_adapter(work.output / "adapter", model, base_digest=base, extra=["score.weight"], targets=config.lora.targets)
        difference = merge_lora(model, probe)
        work.info["merge_max_difference"] = difference
        if not difference <= MERGE_TOLERANCE:  # also catches NaN
            work.log.warning("finetune: merging the adapter changes logits by up to %.2g", difference)
    return files + save_classifier(work.output, model, labels=labels, tokenizer=source, max_length=encoder.max_length)


class MetricsFile:
    """`metrics.jsonl`, one line a logged step; several seeds share it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.seed = path, seed

    def write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}  # JSON has no NaN
            file.write(json.dumps({"seed": self.seed, **finite}, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Forget this seed's lines after `step`, and a torn last line: they come again."""
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record["seed"] != self.seed or record["step"] <= step:
                kept.append(line + "\n")
        atomic_write(self.path, "".join(kept))


