"""Held-out bits per byte after the same time on the same text: llmpipe's defaults beside nanoGPT's recipe.

    python scripts/bench/pretrain_quality.py --minutes 10                 # docstrings of this Python and its packages
    python scripts/bench/pretrain_quality.py --minutes 10 --text my-texts
    python scripts/bench/pretrain_quality.py --minutes 10 --tokens data/tokens

Both train 4 layers of 256 (4.3 million parameters at 4,096 ids) on the same tokens and are scored on the same held-out documents
in the same windows. llmpipe runs as a user runs it, with `hours`; then nanoGPT's recipe gets the processor seconds that
llmpipe took, start and evaluations included, so that a busy machine favours neither. The recipe, in an implementation of our own:
LayerNorm, GELU, learned positions, fused QKV, tied head, initial std 0.02 with the projections into the stream scaled
down; AdamW (betas 0.9, 0.99, weight decay 0.1 on matrices), rate 1e-3 to 1e-4 by cosine after a short warm-up, clipping at 1,
12 sequences a step. It is given bf16 where the CPU has it.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS, DIM, HEADS, CONTEXT, NANO_BATCH = 4, 256, 4, 256, 12
EVAL_TOKENS = 100_000
MAX_CORPUS_MB = 12  # 3 million tokens: more than ten minutes on two cores read once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--text", type=Path, help="a folder that llmpipe ingest reads")
    parser.add_argument("--tokens", type=Path, help="an output of llmpipe tokenize")
    parser.add_argument("--work", type=Path, help="where to put things; default a temporary folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3, help="of nanoGPT's recipe")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        tokens = args.tokens or tokenized(args.text or docstrings(work / "text"), work)
        before, started = cpu_seconds(), time.monotonic()
        llmpipe("pretrain", "--input", tokens, "--output", work / "model", *sets(hours=args.minutes / 60, threads=args.threads, eval_tokens=EVAL_TOKENS, sample_tokens=0, eval_every=10**9))
        seconds, wall = cpu_seconds() - before, time.monotonic() - started
        info = json.loads((work / "model" / "manifest.json").read_text(encoding="utf-8"))["info"]
        print(f"llmpipe  {info['val_bpb']:.4f} bits per byte  {info['parameters']:,} parameters  {info['tokens']:,} tokens  {seconds:,.0f} processor seconds  {wall:,.0f} s", flush=True)
        started = time.monotonic()
        nano = nanogpt(tokens, budget=seconds, threads=args.threads, peak=args.lr)
        print(f"nanoGPT  {nano['bpb']:.4f} bits per byte  {nano['parameters']:,} parameters  {nano['tokens']:,} tokens  {nano['seconds']:,.0f} processor seconds  {time.monotonic() - started:,.0f} s")
        print(f"llmpipe needs {1 - info['val_bpb'] / nano['bpb']:.1%} fewer bits per byte")


def llmpipe(*arguments: object) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-m", "llmpipe", *map(str, arguments)], check=True, env=environ)


def sets(**values: object) -> list[str]:
    shape = {"model.num_layers": LAYERS, "model.dim": DIM, "model.num_heads": HEADS, "seq_len": CONTEXT}
    return [x for k, v in {**shape, **values}.items() for x in ("--set", f"{k}={v}")]


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def docstrings(folder: Path) -> Path:
    """Write the docstrings of the standard library and the installed packages, a text a module: prose that is not in this tree."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(root).rglob("*.py")):
            if total > MAX_CORPUS_MB * 1e6:
                break
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
                continue
            found = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
            text = "\n\n".join(d for d in found if d and len(d) > 80)
            if len(text) > 400:
                (folder / f"{total:09d}-{path.stem}.txt").write_text(text, encoding="utf-8")
                total += len(text)
    return folder


def tokenized(text: Path, work: Path) -> Path:
    llmpipe("ingest", text, "--output", work / "docs", "-q")
    llmpipe("dedup", "--input", work / "docs", "--output", work / "unique", "-q")
    llmpipe("tokenizer", "--input", work / "unique", "--output", work / "tokenizer", "--set", "vocab_size=4096", "-q")
    llmpipe("tokenize", "--input", work / "unique", "--tokenizer", work / "tokenizer", "--output", work / "tokens", "--set", "valid_fraction=0.05", "-q")
    return work / "tokens"


def nanogpt(tokens: Path, *, budget: float, threads: int, peak: float) -> dict[str, float]:
    """Train for `budget` processor seconds, the schedule following them, and score the held-out start."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    from llmpipe.data.tokens import TokensDir
    from llmpipe.models.device import bf16_is_fast
    from llmpipe.training.compute import keep_freed_memory

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(DIM, bias=False), nn.LayerNorm(DIM, bias=False)
            self.qkv, self.out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
            self.up, self.down = nn.Linear(DIM, 4 * DIM, bias=False), nn.Linear(4 * DIM, DIM, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Decoder(nn.Module):
        def __init__(self, vocab_size: int) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocab_size, DIM), nn.Embedding(CONTEXT, DIM)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(LAYERS)), nn.LayerNorm(DIM, bias=False)
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if name.endswith(("out.weight", "down.weight")) else 0.02)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return F.linear(self.norm(x), self.tokens.weight)

    torch.manual_seed(1)
    torch.set_num_threads(threads)
    keep_freed_memory()
    opened = TokensDir(tokens)
    train, valid, sizes = opened.split("train"), opened.split("valid"), opened.token_bytes()
    model = Decoder(opened.vocab_size)
    groups = [{"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.99), fused=True)
    low, rng = bf16_is_fast("cpu"), np.random.default_rng(1)
    first, steps, done = cpu_seconds(), 0, 0.0
    while done < 1:
        factor = min((steps + 1) / 100, done / 0.05 + 1e-3, 1.0) if done < 0.05 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        batch = torch.from_numpy(np.stack([train.window(int(s), CONTEXT + 1) for s in rng.integers(0, len(train) - CONTEXT - 1, NANO_BATCH)]))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps, done = steps + 1, (cpu_seconds() - first) / budget
    spent = cpu_seconds() - first
    ids = valid.window(0, min(len(valid), EVAL_TOKENS + 1))
    nats = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        for start in range(0, len(ids) - 1, CONTEXT):
            part = torch.from_numpy(ids[start : start + CONTEXT + 1])
            scored = torch.from_numpy(sizes[part[1:].numpy()] > 0)
            losses = F.cross_entropy(model(part[None, :-1])[0].float(), part[1:], reduction="none")
            nats += float(losses[scored].sum())
    total = int(sizes[ids[1:]].sum())
    return {"bpb": nats / math.log(2) / total, "parameters": sum(p.numel() for p in model.parameters()), "tokens": steps * NANO_BATCH * CONTEXT, "seconds": spent}


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as llmpipe sets it: threads that spin would eat the budget on a busy machine
    main()
