"""What a run will need of memory and disk, before it starts: `--dry-run` prints it, and `max_ram_gb` refuses it.

    estimate(config, work).as_dict()       # {"ram_gb": …, "max_ram_gb": …, "index_gb": …, "scratch_gb": …}

Only the number of documents costs memory, 300 bytes each; text, shingles, lines and passages go through files.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from llmpipe.errors import UsageError
from llmpipe.work import Work

PROCESS_BYTES = 130 << 20
"""An interpreter with numpy and pyarrow, and the tables of characters."""
UNIT_BYTES = 120 << 20
"""One row group of 8 MB as text, as code points, and its blocks."""
NEW_BYTES, OLD_BYTES = 300, 120
"""A document of this generation: hashes and numbers (70), band keys (56), runs (170). An older one: hashes and numbers."""
EVAL_BYTES_PER_BYTE = 6
"""n-grams of evaluation sets, in every process."""
MIN_PARTITION = 16 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    documents: int
    ram_gb: float
    """Of all processes together, at the peak."""
    max_ram_gb: float
    index_gb: float
    scratch_gb: float
    """Below `state/`, removed at the end."""
    partition_bytes: int
    """Sorted at a time where lines and passages are brought together."""

    def as_dict(self) -> dict[str, Any]:
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items() if k != "partition_bytes"}


def estimate(config: Any, work: Work) -> Estimate:
    """Estimate from the manifests of inputs and output alone."""
    new = sum(s.rows for _, s in work.pending)
    text = sum(s.bytes for _, s in work.pending) * 4  # zstd leaves about a quarter
    old = sum(s.rows for s in work.previous.shards if s.name.startswith("index/docs-")) if work.previous else 0
    units = max(sum(max(-(-s.rows // 2_000), s.bytes * 4 // 8_000_000) for _, s in work.pending), 1)
    workers = min(work.workers, units)
    evaluation = sum(_bytes(path) for path in config.decontaminate) * EVAL_BYTES_PER_BYTE
    processes = 1 if workers == 1 else workers + 1
    fixed = processes * (PROCESS_BYTES + evaluation) + workers * UNIT_BYTES + new * NEW_BYTES + old * OLD_BYTES
    limit = config.max_ram_gb * 2**30 or _machine_bytes() * 0.75
    spare = max(int((limit - fixed) / 4), MIN_PARTITION) if config.lines or config.substrings else 0
    per_doc = (config.near.num_bands * (config.near.num_rows * 4 + 8) if config.near else 0) + 75
    passages = (text * 0.25 if config.lines else 0) + (text * 0.15 if config.substrings else 0)
    return Estimate(
        documents=new,
        ram_gb=(fixed + (MIN_PARTITION * 4 if spare else 0)) / 2**30,
        max_ram_gb=limit / 2**30,
        index_gb=(new * per_doc + passages) / 2**30,
        scratch_gb=(text * (0.7 if config.near else 0) + passages * 3) / 2**30,
        partition_bytes=min(spare, 1 << 28),
    )


def check_memory(config: Any, work: Work) -> None:
    """Refuse to start what would not fit."""
    found = estimate(config, work)
    if found.ram_gb > found.max_ram_gb:
        raise UsageError(
            f"dedup of {found.documents:,} documents with {work.workers} workers needs about {found.ram_gb:.2f} GB of memory, but max_ram_gb is {found.max_ram_gb:.2f}",
            hint="use fewer --workers, raise max_ram_gb, or give the input in several runs: each adds to the output",
        )


def _bytes(path: Any) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _machine_bytes() -> float:
    """Physical memory, or the limit of this control group where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as f:
            text = f.read().strip()
    except OSError:
        return total
    return min(total, int(text)) if text.isdigit() else total
