"""Megabytes a second of `llmpipe tokenize` beside `tokenizers`' own encode_batch_fast, on the same documents and cores.

    python scripts/bench/tokenize.py --docs DOCS --tokenizer TOKENIZER          # a directory of documents of llmpipe
    python scripts/bench/tokenize.py --texts FOLDER --tokenizer TOKENIZER      # text files; ingested first, not timed

The contestants take turns, round by round, each in a process of its own, so that whatever else the machine does hits all
alike. Reported are the medians over rounds, by the wall and by the processor (all processes and threads together).

- library: encode_batch_fast on texts that lie in memory, rayon on as many threads as llmpipe has workers; reading the
  documents, loading the tokenizer and keeping the ids are not timed
- llmpipe: the whole command, from the start of the interpreter to the manifest: reading Parquet, encoding, writing shards,
  index, lineage and digests
- library-1, loop-1: encode_batch_fast and llmpipe's inner loop (llmpipe/tokenizer/encode.py:encode), both on one thread
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from statistics import median

if __name__ == "tokenize":  # a script of this folder wants the standard library's module, which this file's name hides: give it that
    _spec = importlib.util.spec_from_file_location("tokenize", Path(sysconfig.get_path("stdlib"), "tokenize.py"))
    sys.modules["tokenize"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["tokenize"])

CONTESTANTS = ("library", "llmpipe", "library-1", "loop-1")
PAIRS = (("llmpipe", "library"), ("loop-1", "library-1"))
BATCH = 1_000  # documents a call: what `datasets` passes by default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if (args.docs is None) == (args.texts is None):
        parser.error("give --docs or --texts")
    if args.contestant:
        print(json.dumps(run_contestant(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        docs = args.docs or Path(folder, "docs")
        if args.texts:
            subprocess.run([sys.executable, "-m", "llmpipe", "ingest", args.texts, "--output", docs, "-q"], check=True)
        size = sum(len(text.encode()) for text in read_texts(docs))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in args.only}
        for number in range(args.rounds):
            for name in args.only:
                command = [sys.executable, __file__, "--docs", docs, "--tokenizer", args.tokenizer, "--workers", str(args.workers), "--contestant", name]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{name} failed:\n{done.stderr}")
                found[name].append(tuple(json.loads(done.stdout.splitlines()[-1])))
                print(f"round {number + 1}: {name:10s} {size / 1e6 / found[name][-1][0]:7.2f} MB/s of wall, {size / 1e6 / found[name][-1][1]:7.2f} MB/s of processor", file=sys.stderr)
    wall, cpu = ({name: median(size / 1e6 / times[kind] for times in rounds) for name, rounds in found.items()} for kind in (0, 1))
    print(f"{size / 1e6:.1f} MB, {args.workers} workers")
    for name in args.only:
        print(f"{name:10s} {wall[name]:7.2f} MB/s of wall, {cpu[name]:7.2f} MB/s of processor")
    for ours, theirs in PAIRS:
        if ours in wall and theirs in wall:
            print(f"{ours} / {theirs}: {wall[ours] / wall[theirs]:.2f} by wall, {cpu[ours] / cpu[theirs]:.2f} by processor")


def run_contestant(args: argparse.Namespace) -> tuple[float, float]:
    """Return seconds of wall and of processor."""
    if args.contestant == "llmpipe":
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "llmpipe", "tokenize", "-q", "--workers", str(args.workers), "--input", args.docs, "--tokenizer", args.tokenizer, "--output", Path(folder, "tokens")]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - start, cpu_s(resource.RUSAGE_CHILDREN)
    os.environ["RAYON_NUM_THREADS"] = str(args.workers if args.contestant == "library" else 1)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if args.contestant == "library" else "false"
    from llmpipe.tokenizer.directory import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    tokenizer.encode_special_tokens = True
    if args.contestant == "loop-1":
        return inner_loop(args, tokenizer)
    texts = list(read_texts(args.docs))
    start, cpu = time.perf_counter(), cpu_s()
    for i in range(0, len(texts), BATCH):
        tokenizer.encode_batch_fast(texts[i : i + BATCH], add_special_tokens=False)
    return time.perf_counter() - start, cpu_s() - cpu


def inner_loop(args: argparse.Namespace, tokenizer: object) -> tuple[float, float]:
    from llmpipe.data.docs import doc_units
    from llmpipe.data.files import sha256_file
    from llmpipe.data.manifest import read_manifest
    from llmpipe.tokenizer.encode import EncodeUnit, encode
    from llmpipe.work import UnitOutput

    folder = Path(tempfile.mkdtemp())
    shared = {"tokenizer": str(args.tokenizer), "digest": sha256_file(args.tokenizer / "tokenizer.json"), "valid_fraction": 0.01, "vocab_size": tokenizer.get_vocab_size(), "eos_id": 0}
    units = doc_units(args.docs, read_manifest(args.docs, kind="docs").doc_shards())
    start, cpu = time.perf_counter(), cpu_s()
    for number, unit in enumerate(units):
        encode(EncodeUnit(unit, ()), UnitOutput(folder, 0, number, "piece"), shared)
    times = time.perf_counter() - start, cpu_s() - cpu
    shutil.rmtree(folder)
    return times


def read_texts(docs: Path):
    from llmpipe.data.docs import read_docs

    for batch in read_docs(docs, columns=["text"]):
        yield from batch.column("text").to_pylist()


def cpu_s(whose: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
