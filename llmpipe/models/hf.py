"""Hugging Face directories in both directions, without `transformers`.

    save_model(out, model, tokenizer=tokens / "tokenizer")      # what AutoModelForCausalLM and AutoTokenizer load
    model, config = load_model(directory, device="cpu")         # ours, or any Qwen3- or Llama-shaped directory

Reads and writes config.json, model.safetensors, generation_config.json, and with tokenizer/directory.py the tokenizer's
files. Nothing is unpickled: weights in .bin or .pt files are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmpipe.data.files import atomic_path, child, read_json, write_json
from llmpipe.errors import InputError
from llmpipe.models.transformer import ModelConfig, Transformer
from llmpipe.tokenizer.directory import load_tokenizer, save_tokenizer, special_ids

__all__ = ["config_json", "load_config", "load_model", "load_tokenizer", "load_weights", "save_model", "save_weights", "special_ids"]

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
"""The model types that are read; the second is the first without QK-norm."""

NOT_LOADED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and that are computed here."""


# --- writing --------------------------------------------------------------------------------------------------------


def save_model(directory: Path, model: Transformer, *, tokenizer: Path, dtype: torch.dtype | None = None, generation: dict[str, Any] | None = None) -> list[Path]:
    """Write a model with the tokenizer that lies in the directory `tokenizer`; return the files written, each atomically.

    `dtype` is what the weights are stored in (default: as they are); `generation` adds to generation_config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: t.detach().to(device="cpu", dtype=dtype or t.dtype).contiguous() for name, t in model.state_dict().items()}
    stored = next(iter(weights.values())).dtype
    ids = special_ids(tokenizer)
    written = save_tokenizer(directory, tokenizer, model_max_length=model.config.max_seq_len)
    write_json(directory / "config.json", {**config_json(model.config, stored), **ids})
    write_json(directory / "generation_config.json", {**ids, **(generation or {})})
    save_weights(directory / "model.safetensors", weights)
    return [*written, directory / "config.json", directory / "generation_config.json", directory / "model.safetensors"]


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file atomically; equal tensors give equal bytes."""
    from safetensors.torch import save_file

    with atomic_path(path) as tmp:
        save_file(weights, tmp, metadata={"format": "pt"})
        tmp.chmod(0o644)


def config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Describe a model as `transformers` does. Rotary base and dtype are written under their old and new names."""
    kind = "qwen3" if config.qk_norm else "llama"
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": name,
        "torch_dtype": name,
    }


# --- reading --------------------------------------------------------------------------------------------------------


def load_model(directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Transformer, ModelConfig]:
    """Load a model in evaluation mode. Raises `InputError` for pickled, missing, foreign or misshapen weights."""
    config = load_config(directory)
    weights = load_weights(directory)
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)  # some writers store the tied head twice
    with torch.device("meta"):
        model = Transformer(config)
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    faults = [f"{name} is missing" for name in wanted if name not in weights]
    faults += [f"{name} is not a weight of this architecture" for name in weights if name not in wanted]
    faults += [f"{name} is {tuple(weights[name].shape)}, config.json makes it {shape}" for name, shape in wanted.items() if name in weights and tuple(weights[name].shape) != shape]
    if faults:
        raise InputError(f"{directory}: weights and config.json do not fit: " + "; ".join(faults[:4]) + ("; …" if len(faults) > 4 else ""))
    model.load_state_dict({name: t.to(device=device, dtype=dtype) for name, t in weights.items()}, assign=True)
    return model.requires_grad_(True).eval(), config


def load_config(directory: Path) -> ModelConfig:
    """Read config.json of a supported family; refuse what would silently be computed otherwise."""
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: no config.json, so this is not a model directory", hint="llmpipe pretrain --input TOKENS --output DIR makes one")
    raw = read_json(path)
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in ARCHITECTURES:
        raise InputError(f"{path}: model_type {kind!r} is not supported", hint=f"supported: {', '.join(ARCHITECTURES)}")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    refused = [
        *([f"rope type {scaling!r}"] if scaling != "default" else []),
        *([f"hidden_act {raw['hidden_act']!r}"] if raw.get("hidden_act", "silu") != "silu" else []),
        *[f"{key} {raw[key]!r}" for key in ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config") if raw.get(key)],
    ]
    if refused:
        raise InputError(f"{path}: not supported: {', '.join(refused)}")
    try:
        return ModelConfig(
            vocab_size=raw["vocab_size"],
            num_layers=raw["num_hidden_layers"],
            dim=raw["hidden_size"],
            num_heads=raw["num_attention_heads"],
            num_kv_heads=raw.get("num_key_value_heads") or 0,
            head_dim=raw.get("head_dim") or 0,
            ffn_dim=raw["intermediate_size"],
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            qk_norm=kind == "qwen3",
            tie_embeddings=raw.get("tie_word_embeddings", False),
            max_seq_len=raw.get("max_position_embeddings", 1024),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a whole {kind} config ({error!r})") from None


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
