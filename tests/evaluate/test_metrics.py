"""Scores agree with scikit-learn's, and their intervals with what resampling examples one by one gives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from llmpipe.evaluate.metrics import calibration_scores, classification_scores, confusion_matrix, language_scores

LABELS = ["好评", "差评", "neutral", "unused"]


@pytest.fixture
def predictions():
    rng = np.random.default_rng(5)
    truth = rng.choice(3, size=400, p=[0.7, 0.25, 0.05])
    predicted = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 3, 400))
    return truth, predicted


def by_name(scores):
    return {(s.metric, s.label): s for s in scores}


def test_class_metrics_equal_scikit_learn(predictions):
    truth, predicted = predictions
    scores = by_name(classification_scores(truth, predicted, LABELS, draws=50, seed=1))
    assert scores["accuracy", None].value == pytest.approx(sk.accuracy_score(truth, predicted))
    for average in ("macro", "micro", "weighted"):
        p, r, f, _ = sk.precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        got = [scores[f"{average}_{m}", None].value for m in ("precision", "recall", "f1")]
        assert got == pytest.approx([p, r, f])
    p, r, f, support = sk.precision_recall_fscore_support(truth, predicted, labels=range(4), zero_division=0)
    for i, label in enumerate(LABELS):
        assert [scores[m, label].value for m in ("precision", "recall", "f1")] == pytest.approx([p[i], r[i], f[i]])
        assert scores["f1", label].n == support[i]
    assert (confusion_matrix(truth, predicted, 4) == sk.confusion_matrix(truth, predicted, labels=range(4))).all()


def test_interval_is_that_of_resampling_examples(predictions):
    truth, predicted = predictions
    rng = np.random.default_rng(0)
    f1 = []
    for _ in range(600):
        pick = rng.integers(0, len(truth), len(truth))
        f1.append(sk.f1_score(truth[pick], predicted[pick], average="macro", zero_division=0))
    got = by_name(classification_scores(truth, predicted, LABELS, draws=2_000, seed=1))["macro_f1", None]
    assert got.ci95 == pytest.approx(tuple(np.percentile(f1, [2.5, 97.5])), abs=0.02)
    assert got.ci95[0] < got.value < got.ci95[1]


def test_same_seed_gives_the_same_interval_and_one_example_gives_none(predictions):
    truth, predicted = predictions
    assert classification_scores(truth, predicted, LABELS, draws=20, seed=3) == classification_scores(truth, predicted, LABELS, draws=20, seed=3)
    assert classification_scores(truth[:1], predicted[:1], LABELS, draws=20, seed=3)[0].ci95 is None


def test_calibration_equals_scikit_learn_and_hand_computation():
    rng = np.random.default_rng(2)
    p = rng.random(300)
    truth = (rng.random(300) < p).astype(int)
    scores = by_name(calibration_scores(truth, np.stack([1 - p, p], 1), draws=100, seed=1))
    assert scores["brier", None].value == pytest.approx(2 * sk.brier_score_loss(truth, p))
    two = by_name(calibration_scores(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), draws=0, seed=1, bins=10))
    assert two["ece", None].value == pytest.approx((0.1 + 0.8) / 2)


def test_bits_per_byte_weighs_documents_by_bytes():
    nats, tokens, size = np.log(2) * np.array([80.0, 10.0]), np.array([10, 5]), np.array([10, 10])
    scores = by_name(language_scores(nats, tokens, size, draws=100, seed=1))
    assert scores["bits_per_byte", None].value == pytest.approx(90 / 20)
    assert scores["perplexity", None].value == pytest.approx(2 ** (90 / 15))
    assert scores["bits_per_byte", None].ci95 == pytest.approx((1.0, 8.0))
