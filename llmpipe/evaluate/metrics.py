"""Turn predictions into scores, each with a 95 % interval by bootstrap over examples.

    for score in classification_scores(truth, predicted, labels, draws=1_000, seed=1337): ...

Plain numpy arrays in, a list of `Score` out; no file is read or written. Class metrics follow scikit-learn's
definitions: a division by zero is 0, and averages go over the classes that occur in truth or predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CHUNK_CELLS = 4_000_000  # of a block of resampling weights: 32 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    metric: str
    value: float
    n: int
    """How many examples (documents) the value stands on."""
    ci95: tuple[float, float] | None
    """Percentile interval of the bootstrap; None where nothing can be resampled."""
    label: str | None = None
    """The class, for scores of one class."""


# --- classification ------------------------------------------------------------------------------------------------


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count examples by true class (rows) and predicted class (columns): (C, C)."""
    return np.bincount(truth * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def classification_scores(truth: np.ndarray, predicted: np.ndarray, labels: list[str], *, draws: int, seed: int) -> list[Score]:
    """Score single-label predictions given as class numbers.

    Resampling examples with replacement is the same as drawing the cells of the confusion matrix from a multinomial,
    which costs C² numbers a draw however many examples there are.
    """
    counts = confusion_matrix(truth, predicted, len(labels))
    n = int(counts.sum())
    point = matrix_metrics(counts[None])
    resampled = matrix_metrics(_resample_cells(counts, draws, seed)) if n > 1 and draws > 0 else None
    scores = []
    for metric, values in point.items():
        if values.ndim == 1:
            interval = None if resampled is None else _interval(resampled[metric])
            scores.append(Score(metric=metric, value=float(values[0]), n=n, ci95=interval))
    for number, label in enumerate(labels):
        for metric in ("precision", "recall", "f1"):
            interval = None if resampled is None else _interval(resampled[metric][:, number])
            scores.append(Score(metric=metric, value=float(point[metric][0, number]), n=int(counts[number].sum()), ci95=interval, label=label))
    return scores


def matrix_metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute all class metrics of many confusion matrices at once: (K, C, C) -> (K,) each, (K, C) for single classes."""
    hits = np.diagonal(counts, axis1=1, axis2=2).astype(float)  # (K, C)
    support, chosen = counts.sum(2).astype(float), counts.sum(1).astype(float)
    total = support.sum(1)
    precision, recall, f1 = _ratio(hits, chosen), _ratio(hits, support), _ratio(2 * hits, support + chosen)
    present = (support + chosen) > 0
    out = {"accuracy": _ratio(hits.sum(1), total)}
    for average in ("macro", "micro", "weighted"):
        for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            if average == "macro":
                out[f"macro_{name}"] = _ratio((values * present).sum(1), present.sum(1))
            elif average == "micro":  # of single-label predictions all three are the accuracy
                out[f"micro_{name}"] = out["accuracy"]
            else:
                out[f"weighted_{name}"] = _ratio((values * support).sum(1), total)
    return out | {"precision": precision, "recall": recall, "f1": f1}


def _resample_cells(counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 1])
    n = int(counts.sum())
    filled = np.flatnonzero(counts)
    sampled = rng.multinomial(n, counts.ravel()[filled] / n, size=draws)
    cells = np.zeros((draws, counts.size), np.int64)
    cells[:, filled] = sampled
    return cells.reshape(draws, *counts.shape)


def calibration_scores(truth: np.ndarray, probabilities: np.ndarray, *, draws: int, seed: int, bins: int = 15) -> list[Score]:
    """Score how far probabilities (N, C) can be believed.

    `brier` is the mean squared distance to the one-hot truth, summed over classes (0 best, 2 worst); `ece` the gap of
    confidence and accuracy, averaged over `bins` equal-width bins of the top probability by their size.
    """
    n = len(truth)
    squared = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1)
    confidence = probabilities.max(1)
    gap = confidence - (probabilities.argmax(1) == truth)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gap_by_bin = gap[:, None] * (bin_of[:, None] == np.arange(bins))  # (N, bins)
    ece, brier = np.abs(gap_by_bin.sum(0)).sum() / n, squared.mean()
    eces, briers = [], []
    for weights in resampling_weights(n, draws, seed):
        eces.append(np.abs(weights @ gap_by_bin).sum(1) / n)
        briers.append(weights @ squared / n)
    return [
        Score(metric="brier", value=float(brier), n=n, ci95=_interval(np.concatenate(briers)) if briers else None),
        Score(metric="ece", value=float(ece), n=n, ci95=_interval(np.concatenate(eces)) if eces else None),
    ]


# --- language modelling --------------------------------------------------------------------------------------------


def language_scores(nats: np.ndarray, num_tokens: np.ndarray, num_bytes: np.ndarray, *, draws: int, seed: int) -> list[Score]:
    """Score documents by the negative log-likelihood of their text: arrays (N,), one number a document.

    Bits per byte = Σ nats / (ln 2 · Σ UTF-8 bytes), so it doesn't depend on how the tokenizer cuts the text.
    Perplexity is per token, and compares only models with the same tokenizer.
    """
    sums = np.stack([nats, num_tokens, num_bytes], axis=1).astype(float)  # (N, 3)
    blocks = [weights @ sums for weights in resampling_weights(len(nats), draws, seed)]
    resampled = np.concatenate(blocks) if blocks else None
    scores = []
    for metric, function in (("bits_per_byte", _bits_per_byte), ("perplexity", _perplexity)):
        interval = None if resampled is None else _interval(function(resampled))
        scores.append(Score(metric=metric, value=float(function(sums.sum(0)[None])[0]), n=len(nats), ci95=interval))
    return scores


def _bits_per_byte(sums: np.ndarray) -> np.ndarray:
    return _ratio(sums[:, 0], sums[:, 2]) / np.log(2)


def _perplexity(sums: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(_ratio(sums[:, 0], sums[:, 1]), 700.0))  # e^700 is near the largest double


# --- bootstrap -----------------------------------------------------------------------------------------------------


def resampling_weights(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks (K, N) that say how often each of `n` examples occurs in each of `draws` resamples; none for n < 2."""
    rng = np.random.default_rng([seed, 1])
    step = max(1, CHUNK_CELLS // max(n, 1))
    for start in range(0, draws if n > 1 else 0, step):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide, 0 where the divisor is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.asarray(b) != 0)
