"""Several processes for one model: who is who, how weights are shared out, and what all of them must agree on.

    torchrun --nproc_per_node 8 -m llmpipe pretrain --input tokens --output model --config ...
    world = join(device="cuda")          # World() without torchrun: the same code with one process
    shard(model, world, dtype="bf16")

World size enters training in three places: which samples a process takes (`batches.step_samples`), FSDP2's sharding here,
and `World.sum`. Weights, gradients and moments are sharded; torch is imported only where a process group exists.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmpipe.executor import PR_SET_PDEATHSIG
from llmpipe.log import log

if TYPE_CHECKING:
    from torch import Tensor, nn

TIMEOUT = timedelta(minutes=10)
"""How long one process waits for another: longer than an evaluation or a checkpoint by one of them."""


def launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@dataclass(frozen=True, slots=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """One process locks, logs and writes manifests."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes, on the CPU: no device waits. The same result everywhere."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def first(self, values: Sequence[float]) -> list[float]:
        """Return what the first process passes; all must pass as many."""
        return self.sum(values if self.leads else [0.0] * len(values))


def join(*, device: str) -> World:
    """Join the processes that torchrun has started; without it return a world of one."""
    if not launched():
        return World()
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if sys.platform == "linux":  # an agent that is killed leaves no processes behind
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    world = World(dist.get_rank(), dist.get_world_size())
    if not world.leads:
        log.setLevel("ERROR")
    return world


def leave() -> None:
    """Close the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process is gone, in the words of gloo or NCCL."""
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(w in words for w in ("gloo", "nccl", "connection closed by peer", "connection reset by peer"))


# --- sharding -------------------------------------------------------------------------------------------------------


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model's repeated blocks: the members of its outermost lists of modules."""
    from torch import nn

    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def shard(model: nn.Module, world: World, *, device: str, dtype: str) -> None:
    """Share weights out over the processes, each block gathered only while it computes (FSDP2). Nothing with one process.

    The root keeps embedding and head together, which tied weights need. On GPUs blocks are gathered and multiply in bf16;
    on CPUs autocast does that. Gradients are added up in fp32.
    """
    if world.size == 1:
        return
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (world.size,))
    low = torch.bfloat16 if device == "cuda" and dtype != "fp32" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    for block in blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if hasattr(model, "hidden"):
        register_fsdp_forward_method(model, "hidden")


def sync_gradients(model: nn.Module, world: World, wanted: bool) -> None:
    """Add gradients up over the processes in the next backward pass, or only here: once a step is enough."""
    if world.size > 1:
        model.set_requires_gradient_sync(wanted)


def reshard(model: nn.Module, world: World) -> None:
    """Drop gathered weights after passes without a backward one."""
    if world.size > 1:
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; all processes must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_state(model: nn.Module, world: World) -> dict[str, Any]:
    """Gather all weights on the CPU of the first process, one after the other; the others get an empty dictionary."""
    out: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        gathered = whole(tensor.detach())
        if world.leads:
            out[name] = gathered.cpu()
    return out
