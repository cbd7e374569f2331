"""What an unfinished generation has done: `state/journal.jsonl`.

    journal = Journal(output, header); journal.add(record); journal.get("part/00-part-00000-000000-0000", output)

One line a unit of work, fsynced, so that a kill loses at most the units in flight.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llmpipe.data.files import atomic_path


class Journal:
    """`state/journal.jsonl`: what an unfinished generation has done. One line a unit, fsynced; a torn last line is dropped.

    Its first line names the recipe and the inputs, so that a later run knows whether it may go on.
    """

    def __init__(self, output: Path, header: dict[str, Any]) -> None:
        self.path = journal_path(output)
        self.records: dict[str, dict[str, Any]] = {}
        old = read_journal(output)
        if old and old[0] == header:
            self.records = {r["unit"]: r for r in old[1:]}
            kept = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in old)
        else:
            kept = json.dumps(header, ensure_ascii=False) + "\n"
        with atomic_path(self.path) as tmp:
            tmp.write_text(kept, encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8")

    def add(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["unit"]] = record

    def get(self, unit: str, output: Path) -> dict[str, Any] | None:
        """Return a unit's record when all its files are there still, in their size."""
        record = self.records.get(unit)
        if record is None:
            return None
        for shard in record["shards"]:
            path = output / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                return None
        return record

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink()


def journal_path(output: Path) -> Path:
    return output / "state" / "journal.jsonl"


def read_journal(output: Path) -> list[dict[str, Any]]:
    try:
        lines = journal_path(output).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records if records and "fingerprint" in records[0] else []
