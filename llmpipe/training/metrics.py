"""metrics.jsonl: one line a logged step, no step twice, whatever was killed when.

    metrics = Metrics(out / "metrics.jsonl", after=500)        # a resumed run: lines beyond step 500 are cut off
    metrics.write({"step": 505, "loss": 3.2, ...})
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from llmpipe.data.files import atomic_write


class Metrics:
    def __init__(self, path: Path, *, after: int) -> None:
        """Open for appending behind step `after`; what a killed run wrote beyond it, or half, is removed."""
        kept = [r for r in read_metrics(path) if r["step"] <= after]
        atomic_write(path, "".join(_line(r) for r in kept))
        self.last: dict[str, Any] = kept[-1] if kept else {"step": 0}
        self._file = open(path, "a", encoding="utf-8")

    @property
    def last_step(self) -> int:
        return self.last["step"]

    def write(self, record: dict[str, Any]) -> None:
        """Append a line. NaN and infinity, which JSON lacks, become null."""
        self._file.write(_line(record))
        self._file.flush()
        self.last = record

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
