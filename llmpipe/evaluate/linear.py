"""A linear classifier on hashed n-grams: the baseline that a finetuned model has to be compared with.

    model = LinearClassifier.fit(texts, labels, num_classes=9); probabilities = model.predict(texts)   # (N, C)

Features: 1- to 3-grams of words (a Chinese character is a word) and 3- to 5-grams of the characters of longer words,
counted as 1 + ln(count), weighed by inverse document frequency, scaled to length 1. Model: multinomial logistic
regression with L2, solved by L-BFGS to convergence, so it has no seed and no learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import regex

WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\p{L}\p{M}\p{N}_]+|[!?！？。，,.;；:：…~]")
MAX_CHARS = 20_000  # of a text that are read
NUM_BUCKETS = 1 << 22  # collisions cost nothing measurable from 2^20 on; only the buckets in use get a weight
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Bags:
    """Sparse counts of N texts, one entry a distinct n-gram of a text."""

    row: np.ndarray
    bucket: np.ndarray
    count: np.ndarray
    num_rows: int


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    buckets: np.ndarray
    """The n-gram buckets in use, sorted: (F,)."""
    idf: np.ndarray
    """(F,)"""
    weight: np.ndarray
    """(F + 1, C); the last row is the bias."""

    @classmethod
    def fit(cls, texts: list[str], labels: np.ndarray, *, num_classes: int, c: float = 20.0, min_documents: int = 2) -> LinearClassifier:
        """Train on texts with class numbers; see `fit_bags`."""
        return cls.fit_bags(count_ngrams(texts), labels, num_classes=num_classes, c=c, min_documents=min_documents)

    @classmethod
    def fit_bags(cls, bags: Bags, labels: np.ndarray, *, num_classes: int, c: float = 20.0, min_documents: int = 2) -> LinearClassifier:
        """Train on counts with class numbers. `c` is the inverse strength of L2, as in scikit-learn.

        N-grams that occur in fewer than `min_documents` texts are left out (unless there are few texts).
        """
        buckets, documents = np.unique(bags.bucket, return_counts=True)
        if bags.num_rows >= 100:
            buckets, documents = buckets[documents >= min_documents], documents[documents >= min_documents]
        idf = np.log((1 + bags.num_rows) / (1 + documents)) + 1
        model = cls(buckets, idf, np.zeros((len(buckets) + 1, num_classes), np.float32))
        return cls(buckets, idf, _solve(model._features(bags), labels, num_classes, c))

    def predict(self, texts: list[str]) -> np.ndarray:
        """Return the probabilities of the classes, (N, C)."""
        return self.predict_bags(count_ngrams(texts))

    def predict_bags(self, bags: Bags) -> np.ndarray:
        """The same of counts. A row's result depends on no other row: each sum runs over its own n-grams in order."""
        row, column, value = self._features(bags)
        logits = np.stack([np.bincount(row, value * weights[column], minlength=bags.num_rows) for weights in self.weight.T], axis=1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def _features(self, bags: Bags) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weigh known n-grams and append the bias column: (row, column, value), sorted by row."""
        column = np.searchsorted(self.buckets, bags.bucket)
        known = column < len(self.buckets)
        known[known] = self.buckets[column[known]] == bags.bucket[known]
        row, column = bags.row[known], column[known]
        value = (1 + np.log(bags.count[known])) * self.idf[column]
        norm = np.sqrt(np.bincount(row, value**2, minlength=bags.num_rows))
        value = value / norm[row]
        row = np.concatenate([row, np.arange(bags.num_rows)])
        column = np.concatenate([column, np.full(bags.num_rows, len(self.buckets))])
        order = np.argsort(row, kind="stable")
        return row[order], column[order], np.concatenate([value, np.ones(bags.num_rows)])[order].astype(np.float32)


def count_ngrams(texts: list[str]) -> Bags:
    """Count hashed n-grams. One pass of Python over the words, all else in numpy."""
    ids: dict[str, int] = {}
    words, owners = [], np.zeros(len(texts), np.int64)
    for number, text in enumerate(texts):
        found = WORD.findall(text[:MAX_CHARS].lower())
        owners[number] = len(found)
        words += [ids.setdefault(w, len(ids)) for w in found]
    vocabulary = list(ids)
    sequence = np.asarray(words, np.int64)
    owner = np.repeat(np.arange(len(texts)), owners)
    hashes = np.array([_hash(w) for w in vocabulary] or [0], np.uint64)
    rows, keys = [owner], [hashes[sequence]] if len(sequence) else [np.zeros(0, np.uint64)]
    with np.errstate(over="ignore"):
        for n in (2, 3):
            if len(sequence) >= n:
                same = owner[n - 1 :] == owner[: 1 - n]
                key = keys[0][: 1 - n].copy()
                for k in range(1, n):
                    key = (key ^ (key >> np.uint64(29))) * MIX + keys[0][k : len(sequence) - n + 1 + k]
                rows.append(owner[n - 1 :][same])
                keys.append(key[same])
    pieces = [_pieces(w) for w in vocabulary]  # of each distinct word once
    lengths = np.array([len(p) for p in pieces] or [0], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    flat = np.array([h for p in pieces for h in p], np.uint64)
    per_word = lengths[sequence] if len(sequence) else np.zeros(0, np.int64)
    if len(flat) and per_word.sum():
        offset = np.arange(per_word.sum()) - np.repeat(np.cumsum(per_word) - per_word, per_word)
        rows.append(np.repeat(owner, per_word))
        keys.append(flat[np.repeat(starts[sequence], per_word) + offset])
    row, bucket = np.concatenate(rows), (np.concatenate(keys) % np.uint64(NUM_BUCKETS)).astype(np.int64)
    pair, count = np.unique(row * NUM_BUCKETS + bucket, return_counts=True)
    return Bags(pair // NUM_BUCKETS, pair % NUM_BUCKETS, count, len(texts))


def _pieces(word: str) -> list[int]:
    """Hash the 3- to 5-grams of a word's characters with its bounds."""
    if len(word) < 4:
        return []
    marked = f"\x02{word[:40]}\x03"
    return [_hash("\x01" + marked[i : i + n]) for n in (3, 4, 5) for i in range(len(marked) - n + 1)]


def _hash(text: str) -> int:
    """FNV-1a over code points, mixed: the same on every machine (Python's own hash of strings is salted)."""
    value = 0xCBF29CE484222325
    for char in text:
        value = ((value ^ ord(char)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return ((value ^ (value >> 32)) * int(MIX)) & 0xFFFFFFFFFFFFFFFF


def _csr(row: np.ndarray, column: np.ndarray, value: np.ndarray, num_rows: int, num_columns: int):
    import warnings

    import torch

    start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows))])
    with warnings.catch_warnings():  # torch calls its CSR layout beta on every first use
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(torch.from_numpy(start), torch.from_numpy(column), torch.from_numpy(value), (num_rows, num_columns))


def _solve(features: tuple[np.ndarray, np.ndarray, np.ndarray], labels: np.ndarray, num_classes: int, c: float) -> np.ndarray:
    """Minimise mean cross-entropy + |W|² / (2 c N) without its bias row."""
    import torch

    row, column, value = features
    num_rows, num_columns = len(labels), int(column.max()) + 1
    x = _csr(row, column, value, num_rows, num_columns)
    order = np.argsort(column, kind="stable")
    transposed = _csr(column[order], row[order], value[order], num_columns, num_rows)
    target = torch.from_numpy(np.asarray(labels, np.int64))
    weight = torch.zeros(num_columns, num_classes)
    decay = torch.full((num_columns, 1), 1.0 / (c * num_rows))
    decay[-1] = 0
    solver = torch.optim.LBFGS([weight], max_iter=60, history_size=10, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def loss():
        logits = torch.log_softmax(x @ weight, 1)
        gradient = logits.exp()
        gradient[torch.arange(num_rows), target] -= 1
        weight.grad = transposed @ gradient / num_rows + decay * weight
        return -logits[torch.arange(num_rows), target].mean() + 0.5 * (decay * weight**2).sum()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that the weights do not depend on the machine's cores
    try:
        with torch.no_grad():
            solver.step(loss)
    finally:
        torch.set_num_threads(threads)
    return weight.numpy()
