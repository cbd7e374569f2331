"""A task is a record of functions that finetune, eval and generate share, so that no task is written twice.

    task = TASKS["classify"]                                   # finetune/tasks.py
    encoder = Encoder.for_model(directory, labels=labels, max_length=256)
    predictions = predict_rows(task, model, rows, encoder)     # one a row, None where a row can't be encoded

Rows are dicts (data/rows.py). A row becomes no, one or several examples: long texts are cut in windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmpipe.data.rows import Row
from llmpipe.evaluate.metrics import Score
from llmpipe.models.heads import pad_id
from llmpipe.models.hf import load_config
from llmpipe.tokenizer.directory import load_tokenizer, special_ids, tokenizer_settings

Prediction = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    help: str
    columns: tuple[str, ...]
    """What a row needs; further columns are optional."""
    labels: Callable[[Sequence[Row]], list[str]]
    """What the training rows fix for good: the classes."""
    encode: Callable[[Row, Encoder], list[Example]]
    """Cut and number one row; empty when nothing of it can be trained on or scored."""
    collate: Callable[[Sequence[Example], int], Batch]
    """Pad examples to a batch with the padding id."""
    loss: Callable[[nn.Module, Batch, LossSettings], tuple[Tensor, Tensor]]
    """Return the loss summed over targets, and what it is to be divided by, summed likewise. The caller divides, once
    for the whole accumulated batch."""
    predict: Callable[[nn.Module, Batch], list[Prediction]]
    """Answer each example of a batch."""
    combine: Callable[[list[Prediction]], Prediction]
    """Join the predictions of one row's examples."""
    metrics: Callable[[Sequence[Row], Sequence[Prediction], ScoreSettings], list[Score]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.help)  # what `llmpipe list tasks` shows


@dataclass(frozen=True, slots=True)
class Example:
    ids: np.ndarray
    """Input ids, (T,)."""
    target: Any
    """A class number, or (T,) ids with IGNORE where nothing is predicted."""


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # (B, T), padded on the right
    lengths: Tensor  # (B,)
    targets: Tensor  # (B,) or (B, T)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.ids.to(device), self.lengths.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    labels: list[str] = field(default_factory=list)
    draws: int = 1_000
    seed: int = 1337


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What turns text into ids for one model."""

    tokenizer: Any
    max_length: int
    pad: int
    prefix: int | None
    """The token that stands before a document in training: BOS, else EOS."""
    special: frozenset[int]
    labels: dict[str, int] = field(default_factory=dict)
    stride: int = 0

    @classmethod
    def for_model(cls, directory: Path, *, labels: Sequence[str] = (), max_length: int | None = None, stride: int = 0) -> Encoder:
        """Read a model's tokenizer. Special tokens that are written out in a text stay text."""
        tokenizer = load_tokenizer(directory)
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        longest = load_config(directory).max_seq_len
        if isinstance(limit := tokenizer_settings(directory).get("model_max_length"), int) and limit > 0:
            longest = min(longest, limit)  # a classifier's is what its training texts were cut at
        ids = special_ids(directory)
        return cls(
            tokenizer=tokenizer,
            max_length=min(max_length or longest, longest),
            pad=pad_id(directory),
            prefix=ids.get("bos_token_id", ids.get("eos_token_id")),
            special=frozenset(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special),
            labels={label: i for i, label in enumerate(labels)},
            stride=stride,
        )

    def ids(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)


def pad_rows(sequences: Sequence[np.ndarray], fill: int) -> Tensor:
    """Stack sequences of different lengths, filled on the right: (B, T)."""
    out = np.full((len(sequences), max(map(len, sequences))), fill, np.int64)
    for row, ids in zip(out, sequences, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)


def by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices, longest first, each of at most `batch_tokens` padded tokens (or one example)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.no_grad()  # not inference_mode: the model keeps tables that training needs later
def predict_rows(
    task: Task, model: nn.Module, rows: Sequence[Row], encoder: Encoder, *, batch_tokens: int = 8192, device: torch.device | str = "cpu", report: Callable[[int, int], None] | None = None
) -> list[Prediction | None]:
    """Predict every row, in order. Rows of like length share a batch, so that little is padding.

    A prediction doesn't depend on the rest of its batch (beyond rounding): padding is never seen.
    """
    examples: list[Example] = []
    owner: list[int] = []
    for number, row in enumerate(rows):
        made = task.encode(row, encoder)
        examples += made
        owner += [number] * len(made)
    answers: list[list[tuple[int, Prediction]]] = [[] for _ in rows]
    done = 0
    for chosen in by_length([len(e.ids) for e in examples], batch_tokens):
        batch = task.collate([examples[i] for i in chosen], encoder.pad).to(device)
        for i, prediction in zip(chosen, task.predict(model, batch), strict=True):
            answers[owner[i]].append((i, prediction))
        done += len(chosen)
        if report is not None:
            report(done, len(examples))
    return [task.combine([p for _, p in sorted(a, key=lambda pair: pair[0])]) if a else None for a in answers]
