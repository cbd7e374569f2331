"""What a killed run goes on from: every tensor of model and optimizers in safetensors, the rest in state.json.

    save(folder, step=500, tensors=flat_tensors(model, optimizers), state={...})
    state = load_latest(folder, tensors)          # fills the tensors in place; None when there is nothing to go on from

Writes `<folder>/step-00000500/`, made as `.tmp` and renamed: it is whole or absent. Tensors go through
torch.distributed.checkpoint's safetensors storage, so that a run on more processes can read them; its default storage
pickles its metadata and is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from llmpipe.data.files import fsync_dir, read_json, sha256_file, write_json
from llmpipe.errors import InputError, LlmpipeError
from llmpipe.log import log

_NAME = re.compile(r"step-(\d{8})")


def save(folder: Path, *, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint; then remove all but the newest `keep` (at least 2: the one before is the way back)."""
    final = folder / f"step-{step:08d}"
    tmp = folder / f"{final.name}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process is no news
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(path=str(tmp)), no_dist=True)
    files = {}
    for file in sorted(tmp.iterdir()):
        with open(file, "rb") as f:
            os.fsync(f.fileno())
        files[file.name] = sha256_file(file)
    write_json(tmp / "state.json", {**state, "step": step, "files": files})
    shutil.rmtree(final, ignore_errors=True)
    os.rename(tmp, final)
    fsync_dir(folder)
    for old in checkpoints(folder)[max(keep, 2) :]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, newest first. Refuse a folder with pickled ones."""
    if not folder.is_dir():
        return []
    for path in sorted(folder.rglob("*")):
        if path.name == ".metadata" or path.suffix in (".distcp", ".pt", ".pth", ".bin", ".pkl"):
            raise InputError(f"{path}: a checkpoint that would have to be unpickled, which can run code", hint="llmpipe reads safetensors only; remove it or choose another --output")
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def load_latest(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
    """Fill `tensors` from the newest whole checkpoint and return its state. One that is broken is said and passed over."""
    found = checkpoints(folder)
    for path in found:
        try:
            state = _check(path)
        except InputError as error:
            log.warning("%s; going back to the checkpoint before it", error.message)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dcp.load(tensors, storage_reader=HuggingFaceStorageReader(path=str(path)), no_dist=True)
            except (dcp.api.CheckpointException, KeyError, RuntimeError, ValueError) as error:
                raise InputError(f"{path}: holds another model or optimizer ({str(error).splitlines()[0][:200]})", hint="--force starts anew") from None
        return state
    if found:
        raise LlmpipeError(f"{folder}: every checkpoint is broken", hint="--force starts anew")
    return None


def _check(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state and compare its files with their digests."""
    state = read_json(path / "state.json")
    for name, digest in state.get("files", {}).items():
        if not (path / name).is_file() or sha256_file(path / name) != digest:
            raise InputError(f"{path / name}: differs from its digest")
    if not state.get("files"):
        raise InputError(f"{path}: names no files")
    return state
