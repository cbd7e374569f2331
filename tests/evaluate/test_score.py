"""Bits per byte mean what they say, whatever the tokenizer, the window or the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llmpipe.evaluate.metrics import language_scores
from llmpipe.evaluate.score import LANGUAGE
from llmpipe.finetune.task import Encoder, ScoreSettings, predict_rows
from llmpipe.models.hf import load_model
from tests.tiny import TEXTS, make_model

ROWS = [{"text": t} for t in TEXTS]


class UniformBytes(nn.Module):
    """Gives each of 256 tokens the same probability."""

    def hidden(self, ids):
        return torch.zeros(*ids.shape, 1)

    def logits(self, hidden):
        return torch.zeros(*hidden.shape[:-1], 256)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("m"))


def bits_per_byte(rows, predictions):
    return LANGUAGE.metrics(rows, predictions, ScoreSettings(draws=0))[0].value


def test_uniform_byte_model_has_exactly_eight_bits_per_byte():
    rows = [{"ids": np.frombuffer(t.encode(), np.uint8), "num_bytes": len(t.encode())} for t in TEXTS]
    encoder = Encoder(tokenizer=None, max_length=16, pad=0, prefix=0, special=frozenset(), stride=8)
    assert bits_per_byte(rows, predict_rows(LANGUAGE, UniformBytes(), rows, encoder)) == pytest.approx(8.0, abs=1e-12)


def test_equal_text_under_two_tokenizers_has_equal_bits_per_byte():
    text = "数字 abc, 一二三"
    size = len(text.encode())
    one_byte_each, words = np.ones(size), np.array([len(w.encode()) for w in ("数字", " abc", ", ", "一二", "三")])
    got = [language_scores(np.array([(n * math.log(256)).sum()]), np.array([len(n)]), np.array([size]), draws=0, seed=0) for n in (one_byte_each, words)]
    assert [s[0].value for s in got] == pytest.approx([8.0, 8.0])
    assert got[0][1].value != pytest.approx(got[1][1].value)  # perplexity per token does depend on it


def test_windows_score_each_token_once_with_the_context_they_have(directory):
    model, _ = load_model(directory)
    text = " ".join(TEXTS * 3)
    whole = Encoder.for_model(directory)
    ids = whole.ids(text)
    assert len(ids) > 100
    encoder = Encoder.for_model(directory, max_length=32, stride=8)
    got = predict_rows(LANGUAGE, model, [{"text": text}], encoder)[0]
    sequence = torch.tensor([encoder.prefix, *ids.tolist()])
    nats, start, scored = 0.0, 0, 0
    while scored < len(ids):  # one window at a time, without batches or padding
        end = min(start + 32, len(ids))
        logits = model(sequence[start:end][None])[0]
        nll = F.cross_entropy(logits, sequence[start + 1 : end + 1], reduction="none")
        nats, start, scored = nats + nll[scored - start :].sum().item(), start + 8, end
    assert got["num_tokens"] == len(ids)
    assert got["nats"] == pytest.approx(nats, rel=1e-5)


def test_score_does_not_depend_on_the_rest_of_the_batch(directory):
    model, _ = load_model(directory)
    encoder = Encoder.for_model(directory, stride=32)
    together = predict_rows(LANGUAGE, model, ROWS, encoder)
    apart = [predict_rows(LANGUAGE, model, [r], encoder, batch_tokens=1)[0] for r in ROWS]
    assert [p["nats"] for p in together] == pytest.approx([p["nats"] for p in apart], rel=1e-5)


def test_special_tokens_count_neither_bits_nor_bytes_and_written_ones_stay_text(directory):
    model, _ = load_model(directory)
    encoder = Encoder.for_model(directory)
    plain = encoder.ids("春眠不觉晓")
    row = {"ids": np.append(plain, encoder.prefix), "num_bytes": 15}
    ended, bare = predict_rows(LANGUAGE, model, [row, {"text": "春眠不觉晓"}], encoder)
    assert ended["num_tokens"] == bare["num_tokens"] == len(plain)
    assert ended["nats"] == pytest.approx(bare["nats"], rel=1e-6)
    assert encoder.tokenizer.decode(encoder.ids("a<|endoftext|>b"), skip_special_tokens=True) == "a<|endoftext|>b"


def test_an_empty_document_is_not_scored(directory):
    model, _ = load_model(directory)
    assert predict_rows(LANGUAGE, model, [{"text": ""}], Encoder.for_model(directory)) == [None]
