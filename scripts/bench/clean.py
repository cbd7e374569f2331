"""Measure `llmpipe clean` against datatrove with the same rules, whole processes in turn, two workers each.

    python scripts/bench/clean.py MANUALS --datatrove VENV/bin/python [--megabytes 30] [--rounds 2]
    python scripts/bench/clean.py MANUALS --growth          # memory for 1 and for 10 times the input, llmpipe alone

MANUALS is a folder of English text files, one document each (or a directory of documents). Debian's manuals will do:

    apt-get download manpages manpages-dev git-man perl-doc mandoc      # unpack each with dpkg-deb -x FILE.deb tree
    for f in $(find tree -path '*man*' -name '*.gz'); do zcat $f | mandoc -Tutf8 | col -b > MANUALS/$(basename $f).txt; done

datatrove lives in an environment of its own: `uv venv VENV && uv pip install --python VENV datatrove spacy jieba nltk tldextract
fasttext-numpy2-wheel fsspec orjson xxhash pyarrow regex`. Both sides read the same Parquet shards and write compressed output. Rules: Gopher
repetition and quality, C4 without its rule on final punctuation, FineWeb, redaction of personal data: FineWeb's recipe.
Prints documents per second, CPU time, peak memory of the process tree and the ratio, one line a round. On a machine that does other work,
trust the ratio of CPU times.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmpipe.data.docs import read_docs, write_docs
from llmpipe.data.ids import doc_id
from llmpipe.data.manifest import NAME, Generation, Manifest, find_manifest, write_manifest

DATATROVE = """
import importlib.metadata
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

if __name__ == "__main__":
    source, target, tasks, workers = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            ParquetReader(source, text_key="text", id_key="id", glob_pattern="*.parquet"),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter(),
            PIIFormatter(),
            ParquetWriter(target),
        ],
        tasks=int(tasks), workers=int(workers), logging_dir=target + "/logs",
    ).run()
"""
SHARDS = 4


def load(folder: Path, *, max_bytes: int) -> list[str]:
    """Return texts of a folder of files, or of a directory of documents, up to a size, in an order that mixes the packages."""
    if find_manifest(folder) is not None:
        texts = [t for batch in read_docs(folder, columns=["text"]) for t in batch.column("text").to_pylist()]
    else:
        texts = [p.read_text("utf-8", "replace") for p in folder.rglob("*") if p.is_file() and p.suffix in (".txt", ".md", ".rst", ".pod")]
    texts = sorted({t for t in texts if t.strip()}, key=lambda t: hashlib.blake2b(t.encode("utf-8", "replace")).digest())
    size = end = 0
    while end < len(texts) and size < max_bytes:
        size += len(texts[end].encode("utf-8", "replace"))
        end += 1
    return texts[:end]


def write_input(path: Path, texts: Sequence[str]) -> Path:
    """Write texts as a directory of documents, the way ingest does."""
    step = -(-len(texts) // SHARDS)
    shards = []
    for n in range(SHARDS):
        rows = [{"id": doc_id(f"{n}/{i}"), "url": f"file:///manual/{n}/{i}", "text": t, "source": "manuals"} for i, t in enumerate(texts[n * step : (n + 1) * step])]
        if rows:
            shards.append(replace(write_docs(path / f"part-00000-{n:06d}.parquet", rows), generation=0))
    counts = {"read": len(texts), "kept": len(texts), "dropped": {}, "extra": {}}
    write_manifest(path, Manifest(stage="ingest", kind="docs", recipe={"stage": "ingest", "version": 1, "config": {}}, fingerprint="bench", generations=[Generation(number=0, counts=counts, made={"seconds": 0})], shards=shards))
    return path


def run(command: Sequence[object], *, environ: dict[str, str] | None = None) -> tuple[float, float, float]:
    """Run a command; return its wall time and CPU time in seconds and the highest memory of its process tree in MiB."""
    start, peak, ticks = time.monotonic(), 0.0, {}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen([str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environ or {})})
        while process.poll() is None:
            tree = look(process.pid)
            peak = max(peak, sum(mib for mib, _ in tree.values()))
            ticks.update((pid, spent) for pid, (_, spent) in tree.items())
            time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{command[0]} failed:\n{log.read()[-3000:]}")
    return time.monotonic() - start, sum(ticks.values()) / os.sysconf("SC_CLK_TCK"), peak


def look(root: int) -> dict[int, tuple[float, int]]:
    """Return resident MiB (shared pages count once for each) and CPU ticks of a process and all below it.

    Asked of /proc, since a pool that is not waited for does not show in its parent's times.
    """
    parents, figures = {}, {}
    page = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry)], figures[int(entry)] = int(fields[1]), (int(fields[21]) * page, int(fields[11]) + int(fields[12]))
    return {pid: figures[pid] for pid in parents if _below(pid, root, parents)}


def _below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid not in (root, 0) and pid in parents:
        pid = parents[pid]
    return pid == root


def llmpipe(source: Path, target: Path, workers: int) -> tuple[float, float, float]:
    shutil.rmtree(target, ignore_errors=True)
    return run([sys.executable, "-m", "llmpipe", "clean", "--input", source, "--output", target, "--workers", workers, "--quiet", "--set", "presets=[fineweb]"])


def datatrove(python: Path, script: Path, source: Path, target: Path, workers: int) -> tuple[float, float, float]:
    shutil.rmtree(target, ignore_errors=True)
    return run([python, script, source, target, SHARDS, workers], environ={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manuals", type=Path)
    parser.add_argument("--datatrove", type=Path, help="Python of an environment that has datatrove; without it llmpipe runs alone")
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--growth", action="store_true", help="run llmpipe on the input and on ten times as much, and compare memory")
    arguments = parser.parse_args()
    texts = load(arguments.manuals, max_bytes=int(arguments.megabytes * 1e6))
    if not texts:
        sys.exit(f"{arguments.manuals}: no *.txt, *.md, *.rst or *.pod, nor a {NAME}")
    size = sum(len(t.encode("utf-8", "replace")) for t in texts)
    print(f"{len(texts):,} documents, {size / 1e6:.1f} MB; {arguments.workers} workers")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        source = write_input(work / "docs", texts)
        if arguments.growth:
            report_growth(work, source, texts, arguments.workers)
            return
        script = work / "run_datatrove.py"
        script.write_text(DATATROVE, encoding="utf-8")
        ratios, cpu_ratios = [], []
        for n in range(arguments.rounds):
            ours = llmpipe(source, work / "ours", arguments.workers)
            line = describe(len(texts), *ours)
            print(f"round {n + 1}  llmpipe   {line}", flush=True)
            if arguments.datatrove:
                theirs = datatrove(arguments.datatrove, script, source, work / "theirs", arguments.workers)
                ratios.append(theirs[0] / ours[0]), cpu_ratios.append(theirs[1] / ours[1])
                print(f"round {n + 1}  datatrove {describe(len(texts), *theirs)}   llmpipe is {ratios[-1]:.1f} times as fast", flush=True)
        if ratios:
            print(f"ratio {statistics.median(ratios):.1f} in documents per second, {statistics.median(cpu_ratios):.1f} in CPU time")


def describe(count: int, seconds: float, cpu: float, mib: float) -> str:
    return f"{count / seconds:8,.0f} docs/s  {seconds:7.1f} s  {cpu:7.1f} s of CPU  {mib:6,.0f} MiB peak"


def report_growth(work: Path, source: Path, texts: list[str], workers: int) -> None:
    """Compare peaks; the ten copies differ by a first line, as ten crawls of one site would."""
    ten = write_input(work / "ten", [f"Copy {k} of this page.\n{t}" for k in range(10) for t in texts])
    peaks = []
    for name, path, count in (("1x", source, len(texts)), ("10x", ten, 10 * len(texts))):
        figures = llmpipe(path, work / "ours", workers)
        peaks.append(figures[2])
        print(f"{name:4} {describe(count, *figures)}", flush=True)
    print(f"growth {100 * (peaks[1] / peaks[0] - 1):+.1f} %")


if __name__ == "__main__":
    main()
