"""metrics.jsonl: one line a logged step, no step twice, whatever was killed when.

    metrics = Metrics(out / "metrics.jsonl", after=500)        # a resumed run: lines beyond step 500 are cut off
    metrics.write({"step": 505, "loss": 3.2, ...})

The same lines go to TensorBoard and Weights & Biases where a config asks for them; both are extras.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmpipe.data.files import atomic_write
from llmpipe.errors import UsageError

Sink = Callable[[dict[str, Any]], None]


class Metrics:
    def __init__(self, path: Path, *, after: int, sinks: Sequence[Sink] = ()) -> None:
        """Open for appending behind step `after`; what a killed run wrote beyond it, or half, is removed."""
        self._path, self._sinks = path, list(sinks)
        self._open(after)

    def _open(self, after: int) -> None:
        kept = [r for r in read_metrics(self._path) if r["step"] <= after]
        atomic_write(self._path, "".join(_line(r) for r in kept))
        self.last: dict[str, Any] = kept[-1] if kept else {"step": 0}
        self._file = open(self._path, "a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Forget the lines beyond a step that training has gone back to."""
        self.close()
        self._open(step)

    @property
    def last_step(self) -> int:
        return self.last["step"]

    def write(self, record: dict[str, Any]) -> None:
        """Append a line. NaN and infinity, which JSON lacks, become null."""
        self._file.write(_line(record))
        self._file.flush()
        self.last = record
        for sink in self._sinks:
            sink(record)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all whole lines, up to the first that is not."""
    records: list[dict[str, Any]] = []
    if not path.is_file():
        return records
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or "step" not in record:
            break
        records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean, ensure_ascii=False) + "\n"


# --- elsewhere ------------------------------------------------------------------------------------------------------


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing, before anything starts."""
    for name in names:
        try:
            importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(name, name))
        except ImportError:
            raise UsageError(f"track: {name} is not installed", hint=f"pip install 'llmpipe[{name}]'") from None


def trackers(names: Sequence[str], folder: Path, *, title: str) -> list[Sink]:
    """Open what a config's `track` names. Event files lie in `<folder>/tensorboard`; W&B reads its own environment variables."""
    return [TRACKERS[name](folder, title) for name in names]


def _tensorboard(folder: Path, title: str) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def sink(record: dict[str, Any]) -> None:
        for key, value in flat(record):
            writer.add_scalar(key, value, record["step"])
        writer.flush()

    return sink


def _wandb(folder: Path, title: str) -> Sink:
    import wandb

    number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]  # the same directory goes on with the same run
    run = wandb.init(project="llmpipe", name=title, id=f"{title}-{number}", resume="allow", dir=str(folder))
    return lambda record: run.log(dict(flat(record)), step=record["step"])


TRACKERS: dict[str, Callable[[Path, str], Sink]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line, those inside it under `outer/inner`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield f"{prefix}{key}", float(value)
