"""Remember the digests of local input files, so that a run over a large folder need not read all of it to find nothing new.

    seen = Seen(output); shard = seen.shard(path, "news/a.jsonl"); seen.save(shards)

A digest is taken from `<output>/state/seen.json` while inode, size, mtime and ctime (ns) are those it was made under, and
the file had been at rest for two seconds then (git's rule for its index: a later change moves ctime, which no tool can set
back). Losing the file costs time, nothing else.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from llmpipe.data.files import atomic_write, sha256_file
from llmpipe.data.manifest import Shard

AT_REST_NS = 2_000_000_000


class Seen:
    """The digests of an output's local inputs, by real path."""

    def __init__(self, output: Path) -> None:
        self._path = output / "state" / "seen.json"
        self._old: dict[str, Any] = {}
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
            self._old = value if isinstance(value, dict) else {}
        except (OSError, ValueError, RecursionError):
            self._old = {}  # the first run, or a torn file: hash again

    def shard(self, path: Path, name: str) -> Shard:
        """Describe a file, hashed only where that is needed."""
        stat = os.stat(path)
        mark = _mark(stat)
        found = self._old.get(os.path.realpath(path))
        if isinstance(found, list) and len(found) == 2 and found[0] == mark:
            return Shard(name=name, rows=0, bytes=stat.st_size, sha256=str(found[1]))
        return Shard(name=name, rows=0, bytes=stat.st_size, sha256=sha256_file(path))

    def save(self, files: list[tuple[Path, str]], *, since: float) -> None:
        """Keep the digests of (path, sha256) as taken at time `since` or later: of files that were at rest by then."""
        rows: dict[str, Any] = {}
        for path, sha256 in files:
            stat = os.stat(path)
            if max(stat.st_mtime_ns, stat.st_ctime_ns) < since * 1e9 - AT_REST_NS and time.time() >= since:
                rows[os.path.realpath(path)] = [_mark(stat), sha256]
        atomic_write(self._path, json.dumps(rows, ensure_ascii=False, sort_keys=True))


def _mark(stat: os.stat_result) -> list[int]:
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
