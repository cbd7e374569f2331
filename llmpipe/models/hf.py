"""Hugging Face directories in both directions, without `transformers`.

    save_model(out, model, tokenizer=tokens / "tokenizer")      # what AutoModelForCausalLM and AutoTokenizer load
    model, config = load_model(directory, device="cpu")         # ours, or any directory of a family in models/families.py

Reads and writes config.json, model.safetensors, generation_config.json, and with tokenizer/directory.py the tokenizer's
files. Nothing is unpickled: weights in .bin or .pt files are refused.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmpipe.data.files import atomic_path, atomic_write, child, read_json, write_json
from llmpipe.errors import InputError
from llmpipe.models.config import ModelConfig
from llmpipe.models.families import FAMILIES, Family, family_of, is_transposed, layout, load_config, write_options
from llmpipe.models.transformer import Transformer
from llmpipe.tokenizer.directory import load_tokenizer, save_tokenizer, special_ids, token_roles

__all__ = ["config_json", "load_config", "load_model", "load_tokenizer", "load_weights", "save_model", "save_weights", "special_ids"]

NOT_LOADED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that are computed here."""


# --- writing --------------------------------------------------------------------------------------------------------


def save_model(directory: Path, model: Transformer, *, tokenizer: Path, dtype: torch.dtype | None = None, generation: dict[str, Any] | None = None) -> list[Path]:
    """Write a model with the tokenizer that lies in the directory `tokenizer`; return the files written, each atomically.

    `dtype` is what the weights are stored in (default: as they are); `generation` adds to generation_config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    weights = their_weights(config, {name: t.detach().to(device="cpu", dtype=dtype or t.dtype) for name, t in model.state_dict().items()})
    stored = next(iter(weights.values())).dtype
    written = save_tokenizer(directory, tokenizer, model_max_length=config.max_seq_len)
    dress_tokenizer(directory, config)
    ids = model_ids(tokenizer, config)
    write_json(directory / "config.json", {**ids, **config_json(config, stored)})
    written.append(directory / "config.json")
    if config.stack != "encoder":
        write_json(directory / "generation_config.json", {**ids, **(generation or {})})
        written.append(directory / "generation_config.json")
    save_weights(directory / "model.safetensors", weights)
    return [*written, directory / "model.safetensors"]


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file atomically; equal tensors give equal bytes."""
    from safetensors.torch import save_file

    with atomic_path(path) as tmp:
        save_file(weights, tmp, metadata={"format": "pt"})
        tmp.chmod(0o644)  # the library writes 0600


def config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Describe a model as `transformers` does, the dtype under its old and its new name."""
    family = FAMILIES[family_of(config)]
    name = str(dtype).removeprefix("torch.")
    head = {"architectures": [family.architecture], "model_type": family_of(config)}
    return {**head, **write_options(family, config), "initializer_range": 0.02, "use_cache": True, "dtype": name, "torch_dtype": name}


def their_weights(config: ModelConfig, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name and lay out weights as the family's files do."""
    family, theirs = FAMILIES[family_of(config)], {}
    for name, parts in layout(family, ours):
        whole = ours[parts[0]] if len(parts) == 1 else torch.cat([ours[part] for part in parts])
        theirs[name] = (whole.T if is_transposed(family, name) else whole).contiguous()
    return theirs


def model_ids(tokenizer: Path, config: ModelConfig) -> dict[str, int | None]:
    """Find the special ids that a model's config names."""
    ids: dict[str, int | None] = {**special_ids(tokenizer)}
    if config.stack == "decoder":
        return ids
    ids = {f"{role}_token_id": None for role in ("bos", "eos", "pad")} | ids  # `transformers` would fill in ids of its own
    if config.stack == "encoder-decoder":
        return ids | {"decoder_start_token_id": ids["pad_token_id"]}
    roles = token_roles(tokenizer)
    return ids | {"cls_token_id": roles.cls, "sep_token_id": roles.sep}


def dress_tokenizer(directory: Path, config: ModelConfig) -> None:
    """Let a copied tokenizer put around a text what the model saw there, name its mask, and give what the model takes.

    Otherwise `transformers` adds token types, which most models refuse, and its pipelines find no mask.
    """
    from tokenizers.processors import TemplateProcessing

    roles, tokenizer = token_roles(directory), load_tokenizer(directory)
    named = {"mask": roles.mask, "cls": roles.cls, "sep": roles.sep} if config.stack == "encoder" else {}
    settings = read_json(directory / "tokenizer_config.json")
    settings.update({f"{role}_token": tokenizer.id_to_token(number) for role, number in named.items() if number is not None and f"{role}_token" not in settings})
    settings.setdefault("model_input_names", ["input_ids", *(["token_type_ids"] if config.token_types > 1 else []), "attention_mask"])
    write_json(directory / "tokenizer_config.json", settings)
    if config.stack == "decoder":
        return
    first, last = (roles.cls, roles.sep) if config.stack == "encoder" else (None, roles.eos)
    if tokenizer.post_processor is not None or last is None:
        return
    around = [(tokenizer.id_to_token(n), n) for n in (first, last) if n is not None]
    start, end = (f"{around[0][0]} " if first is not None else ""), around[-1][0]
    tokenizer.post_processor = TemplateProcessing(single=f"{start}$A {end}", pair=f"{start}$A {end} $B {end}", special_tokens=around)
    atomic_write(directory / "tokenizer.json", tokenizer.to_str(pretty=False) + "\n")


# --- reading --------------------------------------------------------------------------------------------------------


def load_model(directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Transformer, ModelConfig]:
    """Load a model in evaluation mode. Raises `InputError` for pickled, missing, foreign or misshapen weights."""
    config, weights = load_config(directory), load_weights(directory)
    family = FAMILIES[family_of(config)]
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)  # some writers store the tied head twice
    elif "lm_head.weight" not in weights:
        config = replace(config, tie_embeddings=True)  # T5's config.json no longer says whether its head is tied
    with torch.device("meta"):
        model = Transformer(config)
    ours = our_weights(family, {name: tuple(p.shape) for name, p in model.state_dict().items()}, weights, directory)
    model.load_state_dict({name: t.to(device=device, dtype=dtype).contiguous() for name, t in ours.items()}, assign=True)
    return model.requires_grad_(True).eval(), config


def our_weights(family: Family, wanted: dict[str, tuple[int, ...]], weights: dict[str, torch.Tensor], directory: Path) -> dict[str, torch.Tensor]:
    """Turn a file's weights into ours of the shapes `wanted`. Raises `InputError` that names what does not fit."""
    weights = {re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name)): t for name, t in weights.items()}  # as TensorFlow called them
    if family.prefix and not any(name.startswith(family.prefix) for name in weights):
        weights = {name if name.startswith(("lm_head.", "score.")) else family.prefix + name: t for name, t in weights.items()}
    weights = {name: t for name, t in weights.items() if not re.fullmatch(family.ignored, name)}
    pairs, faults, ours = layout(family, wanted), [], {}
    for name, parts in pairs:
        if name not in weights:
            faults.append(f"{name} is missing")
            continue
        rows = [wanted[part][0] for part in parts]
        shape = (sum(rows), *wanted[parts[0]][1:])
        whole = weights[name].T if is_transposed(family, name) else weights[name]
        if tuple(whole.shape) != shape:
            faults.append(f"{name} is {tuple(weights[name].shape)}, config.json makes it {shape[::-1] if is_transposed(family, name) else shape}")
            continue
        ours.update(zip(parts, whole.split(rows), strict=True))
    known = {name for name, _ in pairs}
    faults += [f"{name} is not a weight of this architecture" for name in weights if name not in known]
    if faults:
        raise InputError(f"{directory}: weights and config.json do not fit: " + "; ".join(faults[:4]) + ("; …" if len(faults) > 4 else ""))
    return ours


def load_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Read model.safetensors, or the shards that model.safetensors.index.json lists."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    elif index.is_file():
        files = [child(directory, name) for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in directory.glob(pattern))
        if pickles:
            raise InputError(
                f"{directory}: its weights are a pickle ({pickles[0]}), which can run code when it is read",
                hint="llmpipe reads safetensors only; the model's authors or `transformers`' save_pretrained can make them",
            )
        raise InputError(f"{directory}: no model.safetensors", hint="was the run that made it cut short? repeat its command")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not a whole safetensors file ({error})", hint=f"llmpipe verify {directory}") from None
    return {name: t for name, t in weights.items() if not name.endswith(NOT_LOADED)}
