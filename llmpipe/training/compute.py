"""The machine under a training run: threads, dtype, memory allocator, and how fast it could be at most.

    prepare(device="cpu", threads=2)            # once, before the first tensor
    with autocast("cpu", "bf16"): loss = model(ids, targets)
    equip(model, config...)                     # fp8, activation checkpointing, torch.compile, each if asked for
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from llmpipe.errors import UsageError
from llmpipe.log import log
from llmpipe.training.parallel import blocks

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True, slots=True)
class Device:
    peak: float
    """Products and sums a second in the dtype that training uses there, dense; sparse figures are twice that and mean nothing here."""
    memory: float
    """Bytes."""
    watts: float
    """At full load, of the device alone."""
    dtype: str = "bf16"


DEVICES = {
    "H200": Device(989e12, 141e9, 700),
    "H100": Device(989e12, 80e9, 700),
    "A100": Device(312e12, 80e9, 400),
    "L40S": Device(362e12, 48e9, 350),
    "L4": Device(121e12, 24e9, 72),
    "4090": Device(165e12, 24e9, 450),
    "3090": Device(71e12, 24e9, 350),
    "T4": Device(8.1e12, 16e9, 70, "fp32"),  # it has no bf16; its 65e12 in fp16 are not used
}
"""By the name that torch gives the GPU; from NVIDIA's data sheets."""


def physical_cores() -> int:
    """Count the cores that this process may run on; two hyperthreads of one core are one."""
    if wanted := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]:
        return max(1, int(wanted)) if wanted.isdigit() else 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return len(cores)


def prepare(*, device: str, threads: int) -> None:
    """Set the number of threads and keep freed memory."""
    torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Tell glibc never to give memory back: it maps every tensor above 32 MB anew, and each step faults its pages in again.

    The same as MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=2147483647 in the environment, without starting over.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not in musl
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(device: str, dtype: str) -> contextlib.AbstractContextManager:
    """Run products in bf16 where `dtype` is that or fp8; weights and their gradients stay fp32."""
    return torch.autocast(device, dtype=torch.bfloat16) if dtype in ("bf16", "fp8") else contextlib.nullcontext()


def known_device() -> str | None:
    """Name the GPU at hand as DEVICES does."""
    name = torch.cuda.get_device_name()
    return next((key for key in DEVICES if re.search(rf"\b{key}\b", name)), None)


def peak_flops(device: str, dtype: str) -> float | None:
    """What the device computes a second at most: from the table for a GPU, by a quick product for a CPU; None when unknown."""
    if device == "cuda":
        found = DEVICES.get(known_device() or "")
        if found is None or (dtype == "fp32") != (found.dtype == "fp32"):
            return None
        return found.peak * (2 if dtype == "fp8" else 1)
    size = 768
    a = torch.ones(size, size, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def free_memory(device: str) -> float | None:
    """Bytes that a run could still take."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return float(found[1]) * 1024 if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch found no memory, on a GPU or on the host."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(w in words for w in ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"))
    )


# --- what a model is equipped with ----------------------------------------------------------------------------------


def equip(model: nn.Module, *, device: str, dtype: str, checkpoint_activations: bool, compiled: bool) -> None:
    """Change how the model's blocks compute, in this order, and not what. No parameter changes its name."""
    if dtype == "fp8":
        _to_fp8(model)
    for block in blocks(model):
        if checkpoint_activations:
            block.forward = partial(recompute, block.forward, use_reentrant=False)
        if compiled:
            block.compile()


def check_fp8(device: str) -> None:
    """Refuse fp8 where it cannot work, before anything starts."""
    if device != "cuda" or torch.cuda.get_device_capability() < (9, 0):
        here = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
        raise UsageError(f"dtype: fp8 needs a GPU of NVIDIA's Hopper generation or later, this is {here}", hint="use bf16, or leave dtype at auto")
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise UsageError("dtype: fp8 needs torchao, which is not installed", hint="pip install 'llmpipe[fp8]'") from None


def _to_fp8(model: nn.Module) -> None:
    """Let the blocks' products run in fp8 with one scale a tensor. torchao wants dimensions that 16 divides."""
    from torchao.float8 import convert_to_float8_training

    for block in blocks(model):
        convert_to_float8_training(block, module_filter_fn=lambda m, _: isinstance(m, nn.Linear) and m.in_features % 16 == 0 and m.out_features % 16 == 0)


def can_compile() -> bool:
    """Probe the C++ compiler that torch.compile needs; say in one line why it stays off, rather than fail in the first step."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        log.warning("torch.compile is off: there is no C++ compiler (g++, c++, clang++ or CXX)")
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <cstdint>\nint main() { return 0; }\n", encoding="utf-8")
        try:
            done = subprocess.run([compiler, str(source), "-o", str(source.with_suffix(""))], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("torch.compile is off: %s does not run (%s)", compiler, error)
            return False
    if done.returncode:
        log.warning("torch.compile is off: %s fails (%s)", compiler, (done.stderr.strip().splitlines() or ["no message"])[0][:200])
    return done.returncode == 0
