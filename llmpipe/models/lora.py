"""Low-rank adaptation: train A and B of W + (alpha / rank) B A, leave W alone (Hu et al. 2021, section 4).

    add_lora(model, rank=16, alpha=32, dropout=0.05, targets=["q_proj", "v_proj"], generator=g)
    save_adapter(out / "adapter", model, base_digest=digest, extra=["score.weight"])
    difference = merge_lora(model)         # W takes its product in, in fp32; the module names are the plain ones again

Adapter files have PEFT's names and keys, so that PEFT loads them onto the same base.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpipe.data.files import atomic_path, read_json, write_json
from llmpipe.errors import InputError

PREFIX = "base_model.model."
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRALinear(nn.Module):
    """A frozen linear layer and a low-rank product beside it. B starts at zero, so the sum starts as the base."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = alpha / rank, dropout
        bound = base.in_features**-0.5
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        with torch.no_grad():
            self.lora_A.weight.uniform_(-bound, bound, generator=generator)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return self.base(x) + self.scale * self.lora_B(self.lora_A(dropped))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        delta = self.lora_B.weight.double() @ self.lora_A.weight.double()
        self.base.weight.copy_((self.base.weight.double() + self.scale * delta).to(self.base.weight.dtype))
        return self.base.requires_grad_(True)


def add_lora(model: nn.Module, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], generator: torch.Generator) -> list[str]:
    """Freeze `model` and put an adapter beside every linear layer whose name ends in one of `targets`; return their names."""
    model.requires_grad_(False)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.rsplit(".", 1)[-1] in targets]
    unused = sorted(set(targets) - {n.rsplit(".", 1)[-1] for n in names})
    if unused:
        raise ValueError(f"lora.targets: no linear layer is called {', '.join(unused)}; known: {', '.join(LINEARS)}")
    for name in names:
        _replace(model, name, LoRALinear(model.get_submodule(name), rank=rank, alpha=alpha, dropout=dropout, generator=generator))
    return names


def merge_lora(model: nn.Module, probe: tuple[Tensor, ...]) -> float:
    """Take every adapter into its base layer; return the largest change of the model's output on the `probe` arguments."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        before = model(*probe)
        for name in [n for n, m in model.named_modules() if isinstance(m, LoRALinear)]:
            _replace(model, name, model.get_submodule(name).merged())
        difference = (model(*probe) - before).abs().max().item()
    model.train(was_training)
    return difference


def save_adapter(directory: Path, model: nn.Module, *, base_digest: str, extra: Sequence[str], targets: Sequence[str]) -> list[Path]:
    """Write the adapters and the trained parameters named in `extra` (a head) in PEFT's layout; return the files written."""
    from safetensors.torch import save_file

    adapters = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    first = next(iter(adapters.values()))
    tensors = {f"{PREFIX}{n}.lora_{k}.weight": getattr(m, f"lora_{k}").weight for n, m in adapters.items() for k in "AB"}
    tensors |= {f"{PREFIX}{n}": model.get_parameter(n) for n in extra}
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "adapter_config.json", directory / "adapter_model.safetensors"]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "",
        "r": first.lora_A.out_features,
        "lora_alpha": first.scale * first.lora_A.out_features,
        "lora_dropout": first.dropout,
        "target_modules": sorted(targets),
        "modules_to_save": sorted({n.rsplit(".", 1)[0] for n in extra}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(files[0], config)
    with atomic_path(files[1]) as tmp:
        save_file({k: t.detach().float().cpu().contiguous() for k, t in tensors.items()}, tmp, metadata={"base_sha256": base_digest})  # one key: the library writes several in random order
        tmp.chmod(0o644)
    return files


def load_adapter(directory: Path, model: nn.Module, *, base_digest: str) -> nn.Module:
    """Put a saved adapter on its base model; refuse another base, whose weights it was not trained beside."""
    from safetensors import safe_open

    config = read_json(directory / "adapter_config.json")
    with safe_open(str(directory / "adapter_model.safetensors"), framework="pt") as file:
        made_on = (file.metadata() or {}).get("base_sha256")
        tensors = {k.removeprefix(PREFIX): file.get_tensor(k) for k in file.keys()}
    if made_on is not None and made_on != base_digest:
        raise InputError(f"{directory}: this adapter was trained on another base (weights {made_on[:12]}…, given {base_digest[:12]}…)", hint="use the model that it was finetuned from")
    add_lora(model, rank=config["r"], alpha=config["lora_alpha"], dropout=config["lora_dropout"], targets=config["target_modules"], generator=torch.Generator())
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    lost = [n for n in missing if ".lora_" in n]
    if unexpected or lost:
        raise InputError(f"{directory}: the adapter does not fit the model: {', '.join([*unexpected, *lost][:4])}")
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, attribute, module)
