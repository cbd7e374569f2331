"""Compare two eval outputs on the examples that both scored, by paired bootstrap.

    compared = compare_reports(Path("runs/eval-a"), Path("runs/eval-b"))      # llmpipe compare A B

Reads `samples/*.parquet` of both, joined by example. Both systems are resampled with the same draws, so what is hard for
both cancels out: differences far smaller than either interval can be told from chance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmpipe.data.files import read_json
from llmpipe.errors import InputError
from llmpipe.evaluate.metrics import matrix_metrics, resampling_weights

CLASS_METRICS = ("accuracy", "macro_f1", "weighted_f1")


def compare_reports(a: Path, b: Path, *, draws: int = 1_000, seed: int = 1337) -> dict[str, Any]:
    """Return for each task and metric the values of A and B on their shared examples, B - A, and its 95 % interval."""
    tasks = [t for t in _tasks(a) if t in _tasks(b)]
    if not tasks:
        raise InputError(f"{a} scored {', '.join(_tasks(a))}, {b} scored {', '.join(_tasks(b))}: no task in common")
    results, shared = [], {}
    for task in tasks:
        left, right = _joined(_samples(a, task), _samples(b, task))
        if not left:
            raise InputError(f"{a} and {b} have no example of {task} in common", hint="score both models on the same --input")
        shared[task] = len(left)
        compare = _compare_language if "nats" in left[0] else _compare_classes
        results += [{"task": task, **row} for row in compare(left, right, draws, seed)]
    return {"a": str(a), "b": str(b), "results": results, "shared": shared, "draws": draws, "seed": seed}


def _tasks(report: Path) -> list[str]:
    return sorted(read_json(report / "results.json")["tasks"])


def _samples(report: Path, task: str) -> list[dict[str, Any]]:
    try:
        return pq.read_table(report / "samples" / f"{task}.parquet").to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{report}: its samples cannot be read ({error})", hint=f"llmpipe verify {report}") from None


def _joined(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pair examples by id; of examples that occur several times the n-th with the n-th."""
    places: dict[str, list[dict[str, Any]]] = {}
    for row in reversed(right):
        places.setdefault(row["id"], []).append(row)
    pairs = [(row, places[row["id"]].pop()) for row in left if places.get(row["id"])]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def _compare_language(left: list[dict[str, Any]], right: list[dict[str, Any]], draws: int, seed: int) -> list[dict[str, Any]]:
    sums = np.array([[a["nats"], b["nats"], a["num_bytes"]] for a, b in zip(left, right, strict=True)])

    def values(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = totals[:, 2] * np.log(2)
        return totals[:, 0] / size, totals[:, 1] / size

    return [_row("bits_per_byte", values, sums, draws, seed)]


def _compare_classes(left: list[dict[str, Any]], right: list[dict[str, Any]], draws: int, seed: int) -> list[dict[str, Any]]:
    if any(a["label"] != b["label"] for a, b in zip(left, right, strict=True)):
        raise InputError("the two reports give the same example different labels")
    names = sorted({r[k] for r in [*left, *right] for k in ("label", "predicted")})
    number, c = {name: i for i, name in enumerate(names)}, len(names)
    truth, first, second = (np.array([number[r[k]] for r in rows]) for rows, k in ((left, "label"), (left, "predicted"), (right, "predicted")))
    cells, where = np.unique(truth * c * c + first * c + second, return_inverse=True)  # C³ kinds of example, few of them filled
    onehot = np.eye(len(cells))[where]

    def matrices(counts: np.ndarray, answers: np.ndarray) -> np.ndarray:
        out = np.zeros((len(counts), c * c))
        np.add.at(out, (slice(None), (cells // (c * c)) * c + answers), counts)
        return out.reshape(-1, c, c)

    def values(metric: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return lambda counts: (matrix_metrics(matrices(counts, cells // c % c))[metric], matrix_metrics(matrices(counts, cells % c))[metric])

    return [_row(metric, values(metric), onehot, draws, seed) for metric in CLASS_METRICS]


def _row(metric: str, values: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], sums: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    a, b = (float(v[0]) for v in values(sums.sum(0)[None]))
    blocks = [weights @ sums for weights in resampling_weights(len(sums), draws, seed)]
    low = high = b - a
    if blocks:
        first, second = values(np.concatenate(blocks))
        low, high = np.percentile(second - first, [2.5, 97.5])
    return {"metric": metric, "a": a, "b": b, "difference": b - a, "ci95": [float(low), float(high)], "n": len(sums)}
