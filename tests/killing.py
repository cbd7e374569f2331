"""Send SIGKILL to a running llmpipe at random moments, and compare what is left in the end."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llmpipe.data.manifest import find_manifest, verify_manifest


def kill_until_done(arguments: Sequence[object], output: Path, *, kills: int, seed: int = 0) -> int:
    """Start a command again and again, kill it while it works, and let the last start finish; return the kills that hit.

    A start is killed once it has journalled one more unit than all before it (or at a random moment before that), so every
    kill lands in the middle of work and the whole comes nearer to its end.
    """
    rng = random.Random(seed)
    journal = output / "state" / "journal.jsonl"
    hits = 0
    command = [sys.executable, "-m", "llmpipe", *map(str, arguments)]
    while hits < kills:
        before = _lines(journal)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and _lines(journal) <= before + rng.choice((0, 0, 1)):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert find_manifest(output) is None, "the kill came after the end"
        hits += 1
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return hits


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def digests(output: Path) -> dict[str, str]:
    """Return sha256 by file of a whole output, after checking the files against them."""
    manifest = find_manifest(output)
    assert manifest is not None and verify_manifest(output, manifest) == []
    listed = {s.name for s in manifest.shards}
    there = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()} - {"manifest.json", ".lock"}
    assert there == listed, there ^ listed
    return {s.name: s.sha256 for s in manifest.shards}
