"""Measure dedup against its peers on the same documents, in turns: datatrove as a whole process, rensa and datasketch per core.

    python scripts/bench/dedup.py DOCS_DIR --peers /tmp/peers/bin/python [--workers 2] [--rounds 2] [--skip-datatrove]
    python scripts/bench/dedup.py --signatures DOCS_DIR          # signatures only; what is not installed is left out

`--peers` names a Python that has datatrove with spaCy, and rensa: they need not stand in llmpipe's environment. Reads a
directory of documents. Prints, for each round, documents per second of whole processes (start of the interpreter, reading
and writing included) with the peak of their memory (PSS of the process tree), megabytes per second of CPU time of the
signatures, and the ratios. The machine may be shared: trust the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHINGLE_WORDS = 5
NUM_PERM, NUM_BANDS, NUM_ROWS = 112, 14, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--signatures", action="store_true")
    parser.add_argument("--skip-datatrove", action="store_true")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part](arguments.directory, arguments.workers)
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(arguments, Path(scratch))


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    from llmpipe.data.docs import read_docs

    jsonl = scratch / "jsonl"
    jsonl.mkdir()
    files = [open(jsonl / f"{n:02d}.jsonl", "w", encoding="utf-8") for n in range(arguments.workers)]
    count = size = 0
    for batch in read_docs(arguments.directory, columns=["id", "text"]):
        for row in batch.to_pylist():
            files[count % len(files)].write(json.dumps(row, ensure_ascii=False) + "\n")
            count, size = count + 1, size + len(row["text"].encode("utf-8", "replace"))
    for file in files:
        file.close()
    print(f"{count:,} documents, {size / 1e6:.1f} MB")
    for number in range(arguments.rounds):
        speeds = signature_speeds(jsonl, arguments.peers, arguments.workers)
        print(f"round {number + 1}: signatures per core  " + "  ".join(f"{k} {v / 1e6:.1f} MB/s" for k, v in speeds.items()))
        print("         ratio  " + "  ".join(f"to {k} {speeds['llmpipe'] / v:.2f}" for k, v in speeds.items() if k != "llmpipe"))
        if arguments.signatures:
            continue
        output = scratch / "llmpipe"
        shutil.rmtree(output, ignore_errors=True)
        ours, memory = timed([sys.executable, "-m", "llmpipe", "dedup", "--input", str(arguments.directory), "--output", str(output), "--workers", str(arguments.workers), "-q"])
        print(f"         llmpipe    {count / ours:8.0f} documents/s  {ours:6.1f} s  peak {memory / 2**20:.0f} MiB")
        if arguments.skip_datatrove:
            continue
        theirs, memory = timed([arguments.peers, __file__, str(jsonl), "--part", "datatrove", "--workers", str(arguments.workers)])
        print(f"         datatrove  {count / theirs:8.0f} documents/s  {theirs:6.1f} s  peak {memory / 2**20:.0f} MiB")
        print(f"         ratio      {theirs / ours:8.1f}")


def timed(command: list[str]) -> tuple[float, int]:
    """Run a command; return seconds and the largest sum of PSS over its process tree, sampled."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if "llmpipe" in command else subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_pss, _tree(process.pid))))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.monotonic() - start, peak


def _tree(pid: int) -> list[int]:
    out = [pid]
    for parent in out:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
        except OSError:
            continue
        out += map(int, children)
    return out


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    return int(found[1]) * 1024 if found else 0


def signature_speeds(jsonl: Path, peers: str, workers: int) -> dict[str, float]:
    """Bytes per second of CPU time, each contestant in a process of its own."""
    out = {}
    for name, python in (("llmpipe", sys.executable), ("rensa", peers), ("datasketch", sys.executable)):
        done = subprocess.run([python, __file__, str(jsonl), "--part", f"sign-{name}", "--workers", str(workers)], capture_output=True, text=True)
        if done.returncode == 0:
            out[name] = float(done.stdout)
        elif name == "llmpipe":
            sys.exit(done.stderr)
    return out


# --- the contestants, each in a process of its own -------------------------------------------------------------------


def read_texts(jsonl: Path, limit: int = 1 << 60) -> list[str]:
    texts, size = [], 0
    for path in sorted(jsonl.glob("*.jsonl")):
        for line in path.open(encoding="utf-8"):
            texts.append(json.loads(line)["text"])
            size += len(texts[-1])
            if size > limit:
                return texts
    return texts


def report(texts: list[str], seconds: float) -> None:
    sys.stdout.write(f"{sum(len(t.encode('utf-8', 'replace')) for t in texts) / seconds}\n")


def python_shingles(text: str) -> list[str]:
    words = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+", text.lower())
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(len(words) - SHINGLE_WORDS + 1, 1))]


def sign_llmpipe(jsonl: Path, workers: int) -> None:
    from llmpipe.dedup.minhash import signatures
    from llmpipe.dedup.shingles import prepare, shingles
    from llmpipe.text.block import blocks
    from llmpipe.text.characters import characters

    characters()
    texts = read_texts(jsonl)
    start = time.process_time()
    for _, block in blocks([prepare(t) for t in texts], inner_dots=False):
        hashes, docs = shingles(block, block.tables.folded, words=SHINGLE_WORDS, characters=8)
        signatures(hashes, docs, block.num_docs, num_perm=NUM_PERM, seed=1)
    report(texts, time.process_time() - start)


def sign_rensa(jsonl: Path, workers: int) -> None:
    from rensa import RMinHash

    texts = read_texts(jsonl, 10_000_000)
    start = time.process_time()
    for text in texts:
        sketch = RMinHash(num_perm=NUM_PERM, seed=1)
        sketch.update(python_shingles(text))
        sketch.digest()
    report(texts, time.process_time() - start)


def sign_datasketch(jsonl: Path, workers: int) -> None:
    from datasketch import MinHash

    texts = read_texts(jsonl, 3_000_000)
    start = time.process_time()
    for text in texts:
        sketch = MinHash(num_perm=NUM_PERM, seed=1, scheme="affine32")
        sketch.update_batch([s.encode() for s in python_shingles(text)])
    report(texts, time.process_time() - start)


def datatrove(jsonl: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=NUM_BANDS, hashes_per_bucket=NUM_ROWS, hash_config=HashConfig(hash_fc="sha1", precision=64))
    with tempfile.TemporaryDirectory() as root:
        stages = (
            ([JsonlReader(str(jsonl)), MinhashDedupSignature(output_folder=f"{root}/sigs", config=config)], workers),
            ([MinhashDedupBuckets(input_folder=f"{root}/sigs", output_folder=f"{root}/buckets", config=config)], NUM_BANDS),
            ([MinhashDedupCluster(input_folder=f"{root}/buckets", output_folder=f"{root}/remove", config=config)], 1),
            ([JsonlReader(str(jsonl)), MinhashDedupFilter(input_folder=f"{root}/remove"), JsonlWriter(f"{root}/out", compression=None)], workers),
        )
        for number, (pipeline, tasks) in enumerate(stages):
            LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=workers, logging_dir=f"{root}/logs/{number}").run()
        written = sum(len(p.read_bytes().splitlines()) for p in Path(f"{root}/out").glob("*.jsonl"))
        if not written or os.environ.get("VERBOSE"):
            sys.stderr.write(f"datatrove kept {written}\n")


PARTS = {"sign-llmpipe": sign_llmpipe, "sign-rensa": sign_rensa, "sign-datasketch": sign_datasketch, "datatrove": datatrove}


if __name__ == "__main__":
    if importlib.util.find_spec("llmpipe") is None and "--part" not in sys.argv:
        sys.exit("run with the Python that has llmpipe; --peers names the other")
    main()
