"""Tokens a second of `llmpipe pretrain` beside transformers' Trainer and a plain fp32 loop, on one shape, in one run.

    python scripts/bench/pretrain.py                       # 4 layers of 256, 4,096 ids, 256 tokens, this CPU
    python scripts/bench/pretrain.py --threads 1 --rounds 5

A step is 32 sequences; Trainer and the plain loop take them 8 at a time (Trainer's default) and accumulate, llmpipe as it
sees fit. Trainer needs `pip install accelerate`. Each contestant is a process of its own that times single optimizer steps; they take turns, round by round, so that
whatever else the machine does hits all alike. Reported is the median over rounds of each round's fastest step.

- llmpipe: what `pretrain` does with its defaults (bf16 where the CPU has it, Muon and AdamW, memory kept), and with AdamW
- trainer: transformers.Trainer with its default TrainingArguments and a Qwen3 of the same shape, fp32
- plain: a GPT-2-style decoder (LayerNorm, GELU, learned positions, fused QKV), AdamW, fp32, eager, in thirty lines
- trainer-bf16, plain-bf16: the same when told to use bf16
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CONTESTANTS = ("llmpipe", "llmpipe-adamw", "trainer", "plain", "trainer-bf16", "plain-bf16")
WARMUP = 2
clock = time.perf_counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("dim", 256), ("heads", 4), ("vocab", 4096), ("seq-len", 256), ("batch", 32), ("micro", 8), ("steps", 5), ("rounds", 3), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cpu-time", action="store_true", help="time the processor instead of the wall: for a busy machine, with --threads 1")
    parser.add_argument("--only", nargs="*", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        run_contestant(args)
        return
    speeds: dict[str, list[float]] = {name: [] for name in args.only}
    for number in range(args.rounds):
        for name in args.only:
            speeds[name].append(in_process(name))
            print(f"round {number + 1}: {name:14s} {speeds[name][-1]:8,.0f} tokens/s", file=sys.stderr)
    result = {name: median(values) for name, values in speeds.items()}
    for name, speed in result.items():
        print(f"{name:14s} {speed:8,.0f} tokens/s" + (f"   llmpipe is {result['llmpipe'] / speed:.2f} times as fast" if name != "llmpipe" and "llmpipe" in result else ""))


def in_process(name: str) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def run_contestant(args: argparse.Namespace) -> None:
    """Print the tokens a second of the fastest step."""
    global clock
    clock = time.process_time if args.cpu_time else time.perf_counter
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from llmpipe.training.compute import physical_cores

    threads = args.threads or physical_cores()
    torch.set_num_threads(threads)
    kind, _, low = args.contestant.partition("-")
    times = {"llmpipe": time_llmpipe, "trainer": time_trainer, "plain": time_plain}[kind](args, threads, low)
    print(json.dumps(args.batch * args.seq_len / min(times[WARMUP:])))


def time_llmpipe(args: argparse.Namespace, threads: int, variant: str) -> list[float]:
    """Time the loop's own step, with its batches, clipping and optimizers."""
    import numpy as np

    from llmpipe.models.device import bf16_is_fast
    from llmpipe.pretrain.job import make_run
    from llmpipe.pretrain.shape import shape_of
    from llmpipe.pretrain.stage import Config, ModelSettings
    from llmpipe.training.compute import prepare
    from llmpipe.training.loop import State, step

    class RandomSplit:
        path, eos_id = "random", None

        def __init__(self) -> None:
            self.ids = np.random.default_rng(1).integers(0, args.vocab, 1_000_000)

        def __len__(self) -> int:
            return len(self.ids)

        def window(self, start: int, length: int) -> np.ndarray:
            return self.ids[start : start + length].astype(np.int64)

    prepare(device="cpu", threads=threads)
    config = Config(
        model=ModelSettings(num_layers=args.layers, dim=args.dim, num_heads=args.heads), seq_len=args.seq_len, batch_tokens=args.batch * args.seq_len,
        steps=1000, device="cpu", dtype="bf16" if bf16_is_fast("cpu") else "fp32", threads=threads, compile=False, optimizer="adamw" if variant == "adamw" else "muon",
    )
    run = make_run(config, shape_of(config, vocab_size=args.vocab), RandomSplit(), Path("unused"))  # type: ignore[arg-type]
    state, times = State(), []
    for _ in range(WARMUP + args.steps):
        start = clock()
        step(run, state)
        times.append(clock() - start)
    return times


def time_trainer(args: argparse.Namespace, threads: int, variant: str) -> list[float]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=args.vocab, hidden_size=args.dim, intermediate_size=-(-8 * args.dim // 3 // 64) * 64, num_hidden_layers=args.layers,
            num_attention_heads=args.heads, num_key_value_heads=args.heads, head_dim=args.dim // args.heads, max_position_embeddings=args.seq_len, tie_word_embeddings=True,
        )
    )
    rows = torch.randint(0, args.vocab, (64 * args.batch, args.seq_len), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in rows]
    times: list[float] = []

    class Timer(TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            self.start = clock()

        def on_step_end(self, *_, **__) -> None:
            times.append(clock() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=args.micro, gradient_accumulation_steps=args.batch // args.micro, max_steps=WARMUP + args.steps, report_to="none", disable_tqdm=True,
            save_strategy="no", use_cpu=True, **({"bf16": True} if variant == "bf16" else {}),
        )
        Trainer(model=model, args=settings, train_dataset=data, callbacks=[Timer()]).train()
    return times


def time_plain(args: argparse.Namespace, threads: int, variant: str) -> list[float]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(args.dim, bias=False), nn.LayerNorm(args.dim, bias=False)
            self.qkv, self.out = nn.Linear(args.dim, 3 * args.dim, bias=False), nn.Linear(args.dim, args.dim, bias=False)
            self.up, self.down = nn.Linear(args.dim, 4 * args.dim, bias=False), nn.Linear(4 * args.dim, args.dim, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (t.unflatten(-1, (args.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(args.vocab, args.dim), nn.Embedding(args.seq_len, args.dim)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(args.layers)), nn.LayerNorm(args.dim, bias=False)

        def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy(F.linear(self.norm(x), self.tokens.weight).flatten(0, 1), targets.flatten())

    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    generator, times = torch.Generator().manual_seed(1), []
    for _ in range(WARMUP + args.steps):
        tokens = torch.randint(0, args.vocab, (args.batch, args.seq_len + 1), generator=generator)
        start = clock()
        for part in tokens.split(args.micro):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=variant == "bf16"):
                loss = model(part[:, :-1], part[:, 1:]) * len(part) / args.batch
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(clock() - start)
    return times


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
