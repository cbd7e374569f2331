"""Save and find what a killed finetuning run goes on from: weights, optimizer, best weights, step.

    save(folder, 120, trained, optimizer, best_weights, state); state = load_latest(folder, trained, optimizer, best_weights)

Writes `<folder>/step-00000120/{tensors.safetensors,state.json}`, made as `.tmp` and renamed, the one before removed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmpipe.data.files import fsync_dir, read_json, write_json
from llmpipe.errors import InputError

_NAME = re.compile(r"step-(\d{8})")


def save(folder: Path, step: int, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer, best: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; then remove the older ones."""
    from safetensors.torch import save_file

    tensors = {f"model.{n}": p.detach() for n, p in trained.items()} | {f"best.{n}": t for n, t in best.items()} | _moments(trained, optimizer)
    final = folder / f"step-{step:08d}"
    tmp = folder / f"{final.name}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    save_file({k: t.cpu().contiguous() for k, t in tensors.items()}, tmp / "tensors.safetensors")
    with open(tmp / "tensors.safetensors", "rb") as file:
        os.fsync(file.fileno())
    write_json(tmp / "state.json", state)
    fsync_dir(tmp)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(tmp, final)
    fsync_dir(folder)
    for path in folder.iterdir():
        if path != final and (_NAME.fullmatch(path.name) or path.name.endswith(".tmp")):
            shutil.rmtree(path, ignore_errors=True)


def load_latest(folder: Path, trained: dict[str, Tensor], optimizer: torch.optim.Optimizer, best: dict[str, Tensor]) -> dict[str, Any] | None:
    """Load the newest checkpoint into what is given and return its state; None when there is none."""
    from safetensors.torch import load_file

    found = sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)) if folder.is_dir() else []
    if not found:
        return None
    tensors = load_file(found[-1] / "tensors.safetensors")
    if {n for n in tensors if n.startswith("model.")} != {f"model.{n}" for n in trained}:
        raise InputError(f"{found[-1]}: a checkpoint of another model", hint="--force starts anew")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(tensors[f"model.{name}"])
            best[name].copy_(tensors[f"best.{name}"])
            if f"exp_avg.{name}" in tensors:
                optimizer.state[p] = {"step": tensors[f"step.{name}"], **{k: tensors[f"{k}.{name}"].to(p.device) for k in ("exp_avg", "exp_avg_sq")}}
    return read_json(found[-1] / "state.json")


def _moments(trained: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{key}.{n}": value for n, p in trained.items() for key, value in optimizer.state.get(p, {}).items()}
