"""Run the tasks of an eval, and write results.json and the samples.

    counts = evaluate(config, work)       # called by the stage

Every row of results.json has the same keys (`ROW`), null where one doesn't apply.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import llmpipe
from llmpipe.config import nearest
from llmpipe.data.docs import write_parquet
from llmpipe.data.files import digest_of, write_json
from llmpipe.data.rows import Row
from llmpipe.errors import InputError, UsageError
from llmpipe.evaluate.baselines import compressed_bits_per_byte, majority
from llmpipe.evaluate.linear import LinearClassifier
from llmpipe.evaluate.metrics import Score, confusion_matrix
from llmpipe.evaluate.score import num_bytes
from llmpipe.evaluate.sources import labelled_rows, language_rows, read_split
from llmpipe.finetune.task import Encoder, Prediction, ScoreSettings, Task, predict_rows
from llmpipe.finetune.tasks import TASKS
from llmpipe.models.heads import class_labels, load_classifier
from llmpipe.models.hf import load_model
from llmpipe.work import Counts, Input, Work

if TYPE_CHECKING:
    from llmpipe.evaluate.stage import Config

ROW = (
    "task", "metric", "value", "n", "ci95", "system", "class", "language", "source", "split", "num_bytes", "num_fewshot", "window", "stride", "bos", "max_length",
    "seed", "draws", "model_hash", "task_hash", "llmpipe",
)  # fmt: skip
MODEL_FILES = ("config.json", "tokenizer.json")
MAX_GROUPS = 20
SNIPPET_CHARS = 500


@dataclass(slots=True)
class Report:
    """What a task adds to results.json and to samples/."""

    rows: list[dict[str, Any]]
    details: dict[str, Any]
    samples: list[dict[str, Any]]
    counts: Counts


def evaluate(config: Config, work: Work) -> Counts:
    """Score the model on every task; write `results.json` and `samples/TASK.parquet`."""
    given = work.input("model")
    labels = class_labels(given.path)
    names = config.tasks or ["classify" if labels is not None else "language"]
    results, details, counts = [], {}, Counts()
    model_hash = digest_of(sorted([s.name, s.sha256] for s in given.shards if s.name.endswith(".safetensors") or s.name in MODEL_FILES))
    parameters = 0
    for name in names:
        if name not in TASKS:
            raise UsageError(f"tasks: {name!r} is unknown{nearest(name, TASKS)}")
        if (name == "language") != (labels is None):
            raise UsageError(f"tasks: {name} does not fit {given.path}, which is a {'language model' if labels is None else 'classifier'}")
        report, parameters = (_language if labels is None else _classify)(config, work, given, TASKS[name])
        results += [_row(r, config, task=name, model_hash=model_hash) for r in report.rows]
        details[name] = report.details
        counts += report.counts
        path = work.output / "samples" / f"{name}.parquet"
        write_parquet(path, pa.Table.from_pylist(report.samples))
        work.add_file(path, rows=len(report.samples))
    path = work.output / "results.json"
    write_json(path, {"schema": 1, "results": results, "model": {"hash": model_hash, "parameters": parameters, "labels": labels}, "tasks": details, "llmpipe": llmpipe.__version__})
    work.add_file(path, rows=len(results))
    work.info["scores"] = {f"{r['task']}.{r['metric']}.{r['system']}": r["value"] for r in results if r["class"] is r["language"] is r["source"] is None}
    return counts


def _row(fields: dict[str, Any], config: Config, **more: Any) -> dict[str, Any]:
    row = dict.fromkeys(ROW) | {"seed": config.seed, "draws": config.draws, "num_fewshot": 0, "llmpipe": llmpipe.__version__} | fields | more
    assert set(row) == set(ROW), set(row) ^ set(ROW)
    return row


def _score_row(score: Score, *, system: str, **fields: Any) -> dict[str, Any]:
    interval = None if score.ci95 is None else list(score.ci95)
    return {"metric": score.metric, "value": score.value, "n": score.n, "ci95": interval, "class": score.label, "system": system, **fields}


# --- language modelling ---------------------------------------------------------------------------------------------


def _language(config: Config, work: Work, given: Input, task: Task) -> tuple[Report, int]:
    model, shape = load_model(given.path, device=config.device)
    if shape.stack != "decoder":
        raise UsageError(f"{given.path} is an {shape.stack}, which gives a text no probability", hint="its val_loss is in metrics.jsonl; finetune it to score it on a task")
    window = min(config.window or shape.max_seq_len, shape.max_seq_len)
    encoder = Encoder.for_model(given.path, max_length=window, stride=min(config.stride or window // 2, window))
    rows = language_rows(config, work, encoder)
    predictions = predict_rows(task, model, rows, encoder, batch_tokens=config.batch_tokens, device=config.device, report=lambda done, total: work.progress.update(done, total))
    kept = [(r, p) for r, p in zip(rows, predictions, strict=True) if p is not None and num_bytes(r) > 0]
    if not kept:
        raise InputError("all documents to score are empty")
    rows, predictions = [r for r, _ in kept], [p for _, p in kept]
    how = {"window": encoder.max_length, "stride": encoder.stride, "bos": encoder.tokenizer.id_to_token(encoder.prefix), "max_length": encoder.max_length}
    how["task_hash"] = digest_of([task.name, how, [[r["id"], num_bytes(r)] for r in rows]])
    settings = ScoreSettings(draws=config.draws, seed=config.seed)
    out = []
    for group, chosen in _groups(rows, config.by):
        part = [rows[i] for i in chosen]
        size = sum(num_bytes(r) for r in part)
        fields = {**how, **group, "num_bytes": size}
        out += [_score_row(s, system="model", **fields) for s in task.metrics(part, [predictions[i] for i in chosen], settings)]
        if config.baselines and "source" not in group:
            for system, bits in compressed_bits_per_byte([r["text"] for r in part]).items():
                out.append({"metric": "bits_per_byte", "value": bits, "n": len(part), "system": system, **fields})
    samples = [
        {"id": r["id"], "language": r.get("language"), "source": r.get("source"), **p, "num_bytes": num_bytes(r), "bits_per_byte": p["nats"] / np.log(2) / num_bytes(r), "text": r["text"][:SNIPPET_CHARS]}
        for r, p in kept
    ]
    tokens = sum(p["num_tokens"] for p in predictions)
    details = {
        "hash": how["task_hash"],
        "documents": len(rows),
        "num_tokens": tokens,
        "num_bytes": sum(map(num_bytes, rows)),
        "compressed": "the UTF-8 bytes of all documents' texts, concatenated with nothing between them: xz is lzma preset 9, zstd is level 19, both with their container",
    }
    work.log.info("eval: %s documents, %s tokens, %s bytes", f"{len(rows):,}", f"{tokens:,}", f"{details['num_bytes']:,}")
    counts = Counts(read=len(predictions), kept=len(rows), extra={"tokens": tokens})
    return Report(out, details, samples, counts), sum(p.numel() for p in model.parameters())


def _groups(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[tuple[dict[str, str], list[int]]]:
    """Yield all rows, then those of each value of each column that has several, the most frequent first."""
    yield {}, list(range(len(rows)))
    for column in columns:
        places = defaultdict(list)
        for i, row in enumerate(rows):
            places[row.get(column) or "unknown"].append(i)
        if len(places) > 1:
            for value in sorted(places, key=lambda v: (-len(places[v]), v))[:MAX_GROUPS]:
                yield {column: value}, places[value]


# --- classification -------------------------------------------------------------------------------------------------


def _classify(config: Config, work: Work, given: Input, task: Task) -> tuple[Report, int]:
    model, labels = load_classifier(given.path, device=config.device)
    encoder = Encoder.for_model(given.path, labels=labels)
    rows, dropped, split = labelled_rows(config, work, task, labels)
    predictions = predict_rows(task, model, rows, encoder, batch_tokens=config.batch_tokens, device=config.device, report=lambda done, total: work.progress.update(done, total))
    read = len(rows) + sum(dropped.values())
    dropped["empty_text"] += sum(p is None for p in predictions)
    rows = [r for r, p in zip(rows, predictions, strict=True) if p is not None]
    systems: dict[str, list[Prediction]] = {"model": [p for p in predictions if p is not None]}
    if config.baselines:
        systems |= _class_baselines(work, given, rows, labels)
    how = {"split": split, "max_length": encoder.max_length}
    how["task_hash"] = digest_of([task.name, how, labels, [[r["id"], r["label"]] for r in rows]])
    settings = ScoreSettings(labels=labels, draws=config.draws, seed=config.seed)
    out = [_score_row(s, system=system, **how) for system, answers in systems.items() for s in task.metrics(rows, answers, settings) if system == "model" or s.label is None]
    truth = np.array([labels.index(r["label"]) for r in rows])
    samples = []
    for i, row in enumerate(rows):
        answer = systems["model"][i]
        sample = {"id": row["id"], "text": row["text"][:SNIPPET_CHARS], "label": row["label"], "predicted": labels[answer["predicted"]], "probability": float(answer["probabilities"].max())}
        samples.append({**sample, "correct": sample["label"] == sample["predicted"], **{s: labels[a[i]["predicted"]] for s, a in systems.items() if s != "model"}})
    chosen = np.array([p["predicted"] for p in systems["model"]])
    details = {"hash": how["task_hash"], "split": split, "examples": len(rows), "labels": labels, "confusion": confusion_matrix(truth, chosen, len(labels)).tolist()}
    return Report(out, details, samples, Counts(read=read, kept=len(rows), dropped=dict(+dropped))), sum(p.numel() for p in model.parameters())


def _class_baselines(work: Work, given: Input, rows: Sequence[Row], labels: list[str]) -> dict[str, list[Prediction]]:
    """Train the majority class and a linear classifier on the rows that the model was finetuned on."""
    train = read_split(given.path, "train")
    if train is None:
        work.log.info("eval: no baselines, since %s keeps no training rows (splits/train.parquet)", given.path)
        return {}
    work.log.info("eval: training the linear baseline on %s rows", f"{len(train):,}")
    numbers = np.array([labels.index(r["label"]) for r in train])
    most = majority(numbers, num_classes=len(labels))
    linear = LinearClassifier.fit([_whole(r) for r in train], numbers, num_classes=len(labels))
    answers = linear.predict([_whole(r) for r in rows])
    return {
        "majority": [{"predicted": most} for _ in rows],
        "linear_ngrams": [{"predicted": int(a.argmax()), "probabilities": a.astype(float)} for a in answers],
    }


def _whole(row: Row) -> str:
    return row["text"] if row.get("text_pair") is None else f"{row['text']}\n{row['text_pair']}"


