"""Classify a text, or a pair of texts: one label out of a fixed set.

    {"text": "这本书很好", "label": "pos"}   {"text": "premise", "text_pair": "hypothesis", "label": "entailment"}

The two texts of a pair are encoded apart and joined by the end token. What is too long loses its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpipe.data.rows import Row
from llmpipe.errors import InputError
from llmpipe.evaluate.metrics import Score, calibration_scores, classification_scores
from llmpipe.finetune.task import Batch, Encoder, Example, LossSettings, Prediction, ScoreSettings, Task, pad_rows

UNKNOWN = -1  # the target of a row without a label, or with one that the model does not know


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Return the classes of the training rows, sorted: numbers by value, else by text."""
    labels = {label for row in rows if (label := label_of(row)) is not None}
    if len(labels) < 2:
        raise InputError(f"a classifier needs at least two labels, the training rows have {len(labels)}" + (f" ({next(iter(labels))!r})" if labels else ""))
    return sorted(labels, key=lambda label: (0, int(label), "") if label.lstrip("-").isdecimal() else (1, 0, label))


def label_of(row: Row) -> str | None:
    label = row.get("label")
    if isinstance(label, list | dict):
        raise InputError(f"a label is a {type(label).__name__} ({label!r}), classify takes one label a row")
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # CSV readers and pandas turn whole numbers into floats
    return None if label is None or label == "" else str(label).lower() if isinstance(label, bool) else str(label)


def encode(row: Row, encoder: Encoder) -> list[Example]:
    """Encode a row to one example, none when there is no text."""
    ids = encoder.ids(row["text"])
    if row.get("text_pair") is not None:
        ids = join_pair(ids, encoder.ids(row["text_pair"]), encoder)
    ids = ids[: encoder.max_length]
    if not len(ids):
        return []
    label = label_of(row)
    return [Example(ids, encoder.labels.get(label, UNKNOWN) if label is not None else UNKNOWN)]


def join_pair(a: np.ndarray, b: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Join two texts by the separator, shortening the longer one first."""
    room = encoder.max_length - 1
    keep_a = max(room - len(b), min(len(a), room // 2))
    a = a[:keep_a]
    return np.concatenate([a, [encoder.pad if encoder.prefix is None else encoder.prefix], b[: room - len(a)]])


def collate(examples: Sequence[Example], pad: int) -> Batch:
    return Batch(pad_rows([e.ids for e in examples], pad), torch.tensor([len(e.ids) for e in examples]), torch.tensor([e.target for e in examples]))


def loss(model: nn.Module, batch: Batch, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy; its divisor is the number of targets, or the sum of their class weights."""
    logits = model(batch.ids, batch.lengths)
    weights = settings.class_weights
    summed = F.cross_entropy(logits, batch.targets, weight=weights, label_smoothing=settings.label_smoothing, reduction="sum")
    return summed, weights[batch.targets].sum() if weights is not None else torch.tensor(float(len(batch.targets)))


def predict(model: nn.Module, batch: Batch) -> list[Prediction]:
    probabilities = torch.softmax(model(batch.ids, batch.lengths).double(), 1).cpu().numpy()
    return [{"probabilities": p, "predicted": int(p.argmax())} for p in probabilities]


def metrics(rows: Sequence[Row], predictions: Sequence[Prediction], settings: ScoreSettings) -> list[Score]:
    """Score predictions of rows whose labels are all known to the model."""
    number = {label: i for i, label in enumerate(settings.labels)}
    truth = np.array([number[label_of(r)] for r in rows])
    predicted = np.array([p["predicted"] for p in predictions])
    scores = classification_scores(truth, predicted, settings.labels, draws=settings.draws, seed=settings.seed)
    if all("probabilities" in p for p in predictions):
        scores += calibration_scores(truth, np.stack([p["probabilities"] for p in predictions]), draws=settings.draws, seed=settings.seed)
    return scores


CLASSIFY = Task(
    name="classify",
    help="One label for a text or a pair of texts: sentiment, topic, entailment.",
    columns=("text", "label"),
    labels=labels_of,
    encode=encode,
    collate=collate,
    loss=loss,
    predict=predict,
    combine=lambda predictions: predictions[0],
    metrics=metrics,
)
