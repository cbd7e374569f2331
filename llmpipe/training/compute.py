"""The machine under a training run: threads, dtype, memory allocator, and how fast it could be at most.

    prepare(device="cpu", threads=2)            # once, before the first tensor
    with autocast("cpu", "bf16"): loss = model(ids, targets)

World size enters training in one place, `batches.step_samples(rank, world_size)`; here it is 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import time
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "3090": 71e12}
"""Dense bf16 products a second, of the name that torch gives the GPU; sparse figures are twice that and mean nothing here."""


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
    """Run products in bf16 where `dtype` is that; weights and their gradients stay fp32."""
    return torch.autocast(device, dtype=torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()


def peak_flops(device: str, dtype: str) -> float | None:
    """What the device computes a second at most: from the table for a GPU, by a quick product for a CPU; None when unknown."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None) if dtype == "bf16" else None
    size = 768
    a = torch.ones(size, size, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
