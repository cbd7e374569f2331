"""Score a language model on documents: negative log-likelihood in strided windows, bits per byte, perplexity.

    predictions = predict_rows(LANGUAGE, model, [{"text": "静夜思 …"}], Encoder.for_model(directory, stride=512))
    scores = LANGUAGE.metrics(rows, predictions, ScoreSettings())

A document stands behind the token that precedes documents in training (BOS, else EOS), which itself is not scored, and
neither is the EOS after it. Every other token is scored once, with at least `max_length - stride` tokens of context
where the document has them. Special tokens count neither bits nor bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpipe.data.rows import Row
from llmpipe.errors import InputError
from llmpipe.evaluate.metrics import Score, language_scores
from llmpipe.finetune.task import Batch, Encoder, Example, LossSettings, Prediction, ScoreSettings, Task, pad_rows
from llmpipe.models.linear_loss import IGNORE

CHUNK_LOGITS = 1 << 25  # logits made at a time: 256 MB in fp64


def encode(row: Row, encoder: Encoder) -> list[Example]:
    """Cut a document's ids into windows; each target stands in exactly one of them.

    A row has `ids` (of a token shard, without special tokens at its ends) or `text`.
    """
    if encoder.prefix is None:
        raise InputError("the tokenizer names no begin or end token, so the first token of a document cannot be predicted", hint="name one in tokenizer_config.json")
    ids = np.asarray(row["ids"], np.int64) if row.get("ids") is not None else encoder.ids(row["text"])
    window, stride = encoder.max_length, encoder.stride or encoder.max_length
    sequence = np.concatenate([[encoder.prefix], ids])
    targets = np.where(np.isin(ids, list(encoder.special)), IGNORE, ids)
    examples, scored, start = [], 0, 0
    while scored < len(ids):
        end = min(start + window, len(ids))
        own = targets[start:end].copy()
        own[: scored - start] = IGNORE
        examples.append(Example(sequence[start:end], own))
        scored, start = end, start + stride
    return examples


def collate(examples: Sequence[Example], pad: int) -> Batch:
    lengths = torch.tensor([len(e.ids) for e in examples])
    return Batch(pad_rows([e.ids for e in examples], pad), lengths, pad_rows([e.target for e in examples], IGNORE))


def loss(model: nn.Module, batch: Batch, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of the next token; its divisor is the number of targets."""
    return model(batch.ids, batch.targets), (batch.targets != IGNORE).sum()


def predict(model: nn.Module, batch: Batch) -> list[Prediction]:
    """Return the nats of each window's targets and how many there are, log-probabilities in fp64."""
    hidden = model.hidden(batch.ids)  # (B, T, C)
    which = (batch.targets != IGNORE).nonzero()  # only what is scored goes through the output layer
    nats = torch.zeros(len(batch.ids), dtype=torch.float64, device=batch.ids.device)
    step = 1
    at = 0
    while at < len(which):
        rows, places = which[at : at + step].T
        logits = model.logits(hidden[rows, places]).double()  # fp32 is off in the ninth digit for a uniform model
        nats.index_add_(0, rows, F.cross_entropy(logits, batch.targets[rows, places], reduction="none"))
        at, step = at + len(rows), max(1, CHUNK_LOGITS // logits.shape[1])
    counts = (batch.targets != IGNORE).sum(1)
    return [{"nats": x, "num_tokens": n} for x, n in zip(nats.tolist(), counts.tolist(), strict=True)]


def combine(predictions: list[Prediction]) -> Prediction:
    return {"nats": sum(p["nats"] for p in predictions), "num_tokens": sum(p["num_tokens"] for p in predictions)}


def num_bytes(row: Row) -> int:
    """Return the UTF-8 bytes of a document's text: as its token shard says, or counted."""
    return row["num_bytes"] if row.get("num_bytes") is not None else len(row["text"].encode("utf-8", "replace"))


def metrics(rows: Sequence[Row], predictions: Sequence[Prediction], settings: ScoreSettings) -> list[Score]:
    return language_scores(
        np.array([p["nats"] for p in predictions]),
        np.array([p["num_tokens"] for p in predictions]),
        np.array([num_bytes(r) for r in rows]),
        draws=settings.draws,
        seed=settings.seed,
    )


LANGUAGE = Task(
    name="language",
    help="The likelihood of text: bits per byte and perplexity of documents.",
    columns=("text",),
    labels=lambda rows: [],
    encode=encode,
    collate=collate,
    loss=loss,
    predict=predict,
    combine=combine,
    metrics=metrics,
)
