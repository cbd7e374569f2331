"""What a killed run goes on from: every tensor of model and optimizers in safetensors, the rest in state.json.

    save(folder, step=500, tensors=flat_tensors(model, optimizers), state={...})
    state = load_latest(folder, tensors)          # fills the tensors in place; None when there is nothing to go on from
    saver = Saver(folder, keep=2, world=world, background=True); saver.save(...); saver.wait()

Writes `<folder>/step-00000500/`, made as `.tmp` and renamed: it is whole or absent. Tensors go through
torch.distributed.checkpoint's safetensors storage, each process its own shards, so that a run on more or fewer processes
can read them; its default storage pickles its metadata and is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from llmpipe.data.files import fsync_dir, read_json, sha256_file, write_json
from llmpipe.errors import InputError, LlmpipeError
from llmpipe.log import log
from llmpipe.training.parallel import World

_NAME = re.compile(r"step-(\d{8})")
_PICKLED = (".distcp", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
MIN_KEPT = 2  # the newest, and the way back from it


def save(folder: Path, *, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = MIN_KEPT, world: World = World(), group: Any = None) -> Path:
    """Write a checkpoint; then remove all but the newest `keep` (at least 2: the one before is the way back).

    All processes call it; the first one commits when all have written.
    """
    final = folder / f"step-{step:08d}"
    tmp = folder / f"{final.name}.tmp"
    if world.leads:
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
    alone = world.size == 1
    if not alone:
        dist.barrier(group=group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process is no news
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(path=str(tmp), save_distributed=True), no_dist=alone, process_group=group)
    if world.leads:
        _commit(tmp, final, {**state, "step": step, "world_size": world.size})
        for old in checkpoints(folder)[max(keep, MIN_KEPT) :]:
            shutil.rmtree(old, ignore_errors=True)
    if not alone:
        dist.barrier(group=group)
    return final


def _commit(tmp: Path, final: Path, state: dict[str, Any]) -> None:
    """Write state.json with the files' digests beside them, and give the checkpoint its name."""
    files = {}
    for file in sorted(tmp.iterdir()):
        with open(file, "rb") as f:
            os.fsync(f.fileno())
        files[file.name] = sha256_file(file)
    write_json(tmp / "state.json", {**state, "files": files})
    shutil.rmtree(final, ignore_errors=True)
    os.rename(tmp, final)
    fsync_dir(final.parent)


class Saver:
    """Checkpoints of one run. In the background only the copy to memory holds training up; one is written at a time."""

    def __init__(self, folder: Path, *, keep: int, world: World, background: bool) -> None:
        self.folder, self.keep, self.world = folder, keep, world
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._group = dist.new_group(backend="gloo") if background and world.size > 1 else None  # its messages must not meet training's
        self._pending: Future[Path] | None = None

    def save(self, *, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.wait()
        if self._pool is None:
            save(self.folder, step=step, tensors=tensors, state=state, keep=self.keep, world=self.world)
            return
        staged = BlockingAsyncStager().stage(dict(tensors))
        self._pending = self._pool.submit(save, self.folder, step=step, tensors=staged, state=state, keep=self.keep, world=self.world, group=self._group)

    def wait(self) -> None:
        """Wait until what was begun is on disk; raise what went wrong."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, newest first. Refuse a folder with pickled ones."""
    if not folder.is_dir():
        return []
    for path in sorted(folder.rglob("*")):
        if path.name == ".metadata" or path.suffix in _PICKLED:
            raise InputError(f"{path}: a checkpoint that would have to be unpickled, which can run code", hint="llmpipe reads safetensors only; remove it or choose another --output")
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def load_latest(folder: Path, tensors: dict[str, Tensor], *, world: World = World()) -> dict[str, Any] | None:
    """Fill `tensors` from the newest whole checkpoint and return its state. One that is broken is said and passed over.

    The first process checks; all read, whatever number of processes wrote.
    """
    step = 0.0
    if world.leads:
        try:
            step = _newest_whole(folder)
        except LlmpipeError:
            world.first([-1.0])
            raise
    (step,) = world.first([step])
    if step < 0:
        raise LlmpipeError(f"{folder}: cannot be read, as the first process says")
    if step == 0:
        return None
    path = folder / f"step-{int(step):08d}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(path=str(path)), no_dist=world.size == 1)
        except (dcp.api.CheckpointException, KeyError, RuntimeError, ValueError) as error:
            raise InputError(f"{path}: holds another model or optimizer ({str(error).splitlines()[0][:200]})", hint="--force starts anew") from None
    return read_json(path / "state.json")


def _newest_whole(folder: Path) -> int:
    """Return the step of the newest checkpoint whose files have their digests; 0 when there are none."""
    found = checkpoints(folder)
    for path in found:
        try:
            _check(path)
        except InputError as error:
            log.warning("%s; going back to the checkpoint before it", error.message)
            continue
        return int(path.name.removeprefix("step-"))
    if found:
        raise LlmpipeError(f"{folder}: every checkpoint is broken", hint="--force starts anew")
    return 0


def _check(path: Path) -> None:
    """Compare a checkpoint's files with the digests in its state."""
    state = read_json(path / "state.json")
    files = state.get("files") if isinstance(state, dict) else None
    if not files:
        raise InputError(f"{path}: names no files")
    for name, digest in files.items():
        if not (path / name).is_file() or sha256_file(path / name) != digest:
            raise InputError(f"{path / name}: differs from its digest")
