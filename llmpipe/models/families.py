"""The model families of Hugging Face directories, as data: which options each is made of, and how its files name things.

    config = load_config(directory)         # what its config.json says, or an error that names what is not computed here
    family = family_of(config)              # the first row whose fixed options the config has
    options = read_options(family, raw)     # of a config.json, for ModelConfig; raises ValueError for what is not computed here
    raw = write_options(family, config)
    pairs = layout(family, names)           # [(their name, our names)]; several of ours are stacked in one of theirs

A new family is one more row of `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpipe.data.files import read_json
from llmpipe.errors import InputError
from llmpipe.log import log
from llmpipe.models.config import ModelConfig

REQUIRED = object()


@dataclass(frozen=True, kw_only=True)
class Family:
    help: str
    architecture: str
    """The class of `transformers` that has the language model's head."""
    classifier: str | None = None
    """The one that classifies whole texts, where llmpipe writes it."""
    fixed: dict[str, Any]
    """Options of ModelConfig that all models of the family have."""
    fields: dict[str, tuple[str, Any]]
    """Options that differ: their key in config.json, and what `transformers` takes where it is missing."""
    only: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys whose other values would be computed differently: those that are right, the default first."""
    read: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: {}
    """Options that do not stand under one key. Raises ValueError for values that are not computed here."""
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    also: str = r"$^"
    """Further keys that may stand in config.json: what `read` reads, and what says nothing about the language model."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Their modules to ours, `*` for a block's number; modules that are not listed have the same name."""
    transposed: tuple[str, ...] = ()
    """Their modules that store (in, out)."""
    prefix: str = ""
    """What a file of the body alone leaves out of its names."""
    ignored: str = r"$^"
    """Weights that are not part of the language model, or stand there twice."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.help)  # what `llmpipe list models` shows


COSMETIC = (
    r"architectures|model_type|transformers_version|_name_or_path|(torch_)?dtype|initializer_\w+|use_cache|\w+_token_id|id2label|label2id|problem_type|task_specific_params|is_encoder_decoder"
    r"|gradient_checkpointing|classifier_\w+|output_past|n_ctx|_attn_implementation\w*|auto_map|model_max_length|finetuning_task|num_labels|max_length|max_window_layers|sliding_window|reference_compile|llmpipe"
)  # fmt: skip


# --- choosing, reading and writing config.json ----------------------------------------------------------------------


def family_of(config: ModelConfig) -> str:
    """Name the family whose layout a model is written in. Raises ValueError if no family has these options together."""
    for name, family in FAMILIES.items():
        if all(getattr(config, option) == value for option, value in family.fixed.items()):
            return name
    raise ValueError(f"no family of {', '.join(FAMILIES)} has these options together: {config}")


def read_options(family: Family, raw: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ModelConfig. Raises ValueError that names each key and value that would be computed otherwise."""
    wrong = [f"{key} {raw[key]!r}" for key, right in family.only.items() if key in raw and raw[key] not in right]
    if raw.get("quantization_config"):
        wrong.append("quantization_config")
    if wrong:
        raise ValueError(f"not supported: {', '.join(wrong)}")
    options = {option: raw.get(key, default) for option, (key, default) in family.fields.items()}
    missing = [family.fields[o][0] for o, value in options.items() if value is REQUIRED or (value is None and family.fields[o][1] is REQUIRED)]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    keys = {key for key, _ in family.fields.values()} | set(family.only)
    strange = [k for k, v in raw.items() if v and k not in keys and not re.fullmatch(f"{COSMETIC}|{family.also}", k)]
    if strange:
        log.warning("config.json: %s: not known for this family, and not used", ", ".join(f"{k} {raw[k]!r}" for k in sorted(strange)))
    return {**family.fixed, **{k: v for k, v in options.items() if v is not None}, **family.read(raw)}


def write_options(family: Family, config: ModelConfig) -> dict[str, Any]:
    fields = {key: getattr(config, option) for option, (key, _) in family.fields.items()}
    return {**fields, **{key: right[0] for key, right in family.only.items()}, **family.write(config)}


def layout(family: Family, names: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Pair each weight of their file with ours, in the order in which ours are stacked in it."""
    where = {ours: (theirs, place) for theirs, modules in family.names.items() for place, ours in enumerate(modules)}
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        block = re.search(r"layers\.(\d+)\.", module)
        pattern = module if block is None else module.replace(block[0], "layers.*.", 1)
        theirs, place = where.get(pattern, (pattern, 0))
        if block is not None:
            theirs = theirs.replace("*", block[1], 1)
        found.setdefault(f"{theirs}.{kind}", []).append((place, name))
    return [(theirs, tuple(name for _, name in sorted(ours))) for theirs, ours in found.items()]


def is_transposed(family: Family, theirs: str) -> bool:
    return theirs.removesuffix(".weight").endswith(family.transposed) if family.transposed and theirs.endswith(".weight") else False


# --- what does not stand under one key ------------------------------------------------------------------------------


def _theta(rope: dict[str, Any], default: float) -> float:
    """Read the base of a rope's description; scaled ropes are not computed here."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"not supported: rope type {kind!r}")
    return float(rope.get("rope_theta", default))


def _read_rope(raw: dict[str, Any]) -> dict[str, Any]:
    if any(kind != "full_attention" for kind in raw.get("layer_types") or ()):
        raise ValueError(f"not supported: layer_types {sorted(set(raw['layer_types']))}")
    return {"rope_theta": _theta(raw.get("rope_parameters") or raw.get("rope_scaling") or {}, raw.get("rope_theta", 10_000.0))}


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    """Describe the rope under its old and its new name."""
    return {"rope_theta": config.rope_theta, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}


def _read_roberta(raw: dict[str, Any]) -> dict[str, Any]:
    offset = raw.get("pad_token_id", 1) + 1  # positions are counted from behind the padding token's id
    return {"position_offset": offset, "max_seq_len": raw.get("max_position_embeddings", 512) - offset}


def _read_modernbert(raw: dict[str, Any]) -> dict[str, Any]:
    rope = raw.get("rope_parameters") or {}
    every = raw.get("global_attn_every_n_layers", 3)
    if types := raw.get("layer_types"):
        full = [i for i, kind in enumerate(types) if kind == "full_attention"]
        every = full[1] if len(full) > 1 else len(types)
        if full != list(range(0, len(types), every)):
            raise ValueError(f"not supported: layer_types {types}; every n-th block from the first must have full attention")
    return {
        "rope_theta": _theta(rope.get("full_attention") or {}, raw.get("global_rope_theta", 160_000.0)),
        "local_rope_theta": _theta(rope.get("sliding_attention") or {}, raw.get("local_rope_theta") or raw.get("global_rope_theta", 10_000.0)),
        "global_every": every,
    }


def _write_modernbert(config: ModelConfig) -> dict[str, Any]:
    kinds = ["sliding_attention" if config.is_local(i) else "full_attention" for i in range(config.num_layers)]
    thetas = {"full_attention": config.rope_theta, "sliding_attention": config.local_rope_theta}
    return {
        "layer_types": kinds,
        "global_attn_every_n_layers": config.global_every,
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "embedding_dropout": config.dropout,
    }


def _read_t5(raw: dict[str, Any]) -> dict[str, Any]:
    if raw.get("feed_forward_proj", "relu") != "gated-gelu":
        raise ValueError(f"not supported: feed_forward_proj {raw.get('feed_forward_proj', 'relu')!r} (T5 1.1 has 'gated-gelu')")
    if raw.get("decoder_start_token_id", raw.get("pad_token_id", 0)) != raw.get("pad_token_id", 0):
        raise ValueError(f"not supported: decoder_start_token_id {raw['decoder_start_token_id']} that is not pad_token_id")
    untied = raw.get("tie_word_embeddings") is False or raw.get("scale_decoder_outputs") is False
    return {"tie_embeddings": not untied, "scale_output": not untied, "attention_dropout": raw.get("dropout_rate", 0.1)}


def _write_t5(config: ModelConfig) -> dict[str, Any]:
    return {
        "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True, "is_encoder_decoder": True,
        "tie_word_embeddings": config.scale_output, "scale_decoder_outputs": config.scale_output, "n_positions": config.max_seq_len,
    }  # fmt: skip


# --- the table ------------------------------------------------------------------------------------------------------

_LLAMA = {
    "vocab_size": ("vocab_size", REQUIRED),
    "num_layers": ("num_hidden_layers", REQUIRED),
    "dim": ("hidden_size", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "ffn_dim": ("intermediate_size", REQUIRED),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "max_seq_len": ("max_position_embeddings", 2048),
    "tie_embeddings": ("tie_word_embeddings", False),
    "attention_dropout": ("attention_dropout", 0.0),
}
_LLAMA_ONLY = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,), "use_sliding_window": (False,)}
_LLAMA_FIXED = {"stack": "decoder", "activation": "swiglu", "norm": "rms", "norm_place": "pre", "bias": False, "positions": "rope", "head_transform": False, "scale_attention": True, "local_window": 0}
_ROPE_KEYS = r"rope_theta|rope_parameters|rope_scaling|layer_types|pretraining_tp"

_BERT = {
    "vocab_size": ("vocab_size", REQUIRED),
    "num_layers": ("num_hidden_layers", REQUIRED),
    "dim": ("hidden_size", REQUIRED),
    "num_heads": ("num_attention_heads", REQUIRED),
    "ffn_dim": ("intermediate_size", REQUIRED),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "token_types": ("type_vocab_size", 2),
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
}
_BERT_ONLY = {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,), "add_cross_attention": (False,), "tie_word_embeddings": (True,)}
_BERT_FIXED = {
    "stack": "encoder", "activation": "gelu", "norm": "layer", "norm_place": "post", "bias": True, "positions": "learned", "qk_norm": False, "embedding_norm": True, "head_transform": True,
    "tie_embeddings": True,
}  # fmt: skip


def _bert_names(body: str, head: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    block = f"{body}.encoder.layer.*"
    return {
        f"{body}.embeddings.word_embeddings": ("model.embed_tokens",),
        f"{body}.embeddings.position_embeddings": ("model.embed_positions",),
        f"{body}.embeddings.token_type_embeddings": ("model.embed_types",),
        f"{body}.embeddings.LayerNorm": ("model.embed_norm",),
        f"{block}.attention.self.query": ("model.layers.*.self_attn.q_proj",),
        f"{block}.attention.self.key": ("model.layers.*.self_attn.k_proj",),
        f"{block}.attention.self.value": ("model.layers.*.self_attn.v_proj",),
        f"{block}.attention.output.dense": ("model.layers.*.self_attn.o_proj",),
        f"{block}.attention.output.LayerNorm": ("model.layers.*.input_layernorm",),
        f"{block}.intermediate.dense": ("model.layers.*.mlp.up_proj",),
        f"{block}.output.dense": ("model.layers.*.mlp.down_proj",),
        f"{block}.output.LayerNorm": ("model.layers.*.post_attention_layernorm",),
        **head,
    }


def _t5_names() -> dict[str, tuple[str, ...]]:
    names = {"shared": ("model.embed_tokens",)}
    for theirs, ours, last in (("encoder", "encoder", 1), ("decoder", "model", 2)):
        block, layer = f"{theirs}.block.*.layer", f"{ours}.layers.*"
        names |= {f"{block}.0.SelfAttention.{k}": (f"{layer}.self_attn.{k}_proj",) for k in "qkvo"}
        names |= {f"{block}.{last}.DenseReluDense.{a}": (f"{layer}.mlp.{b}_proj",) for a, b in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))}
        names |= {f"{block}.0.layer_norm": (f"{layer}.input_layernorm",), f"{block}.{last}.layer_norm": (f"{layer}.post_attention_layernorm",)}
        names |= {f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias": (f"{ours}.relative_bias",), f"{theirs}.final_layer_norm": (f"{ours}.norm",)}
    names |= {f"decoder.block.*.layer.1.EncDecAttention.{k}": (f"model.layers.*.cross_attn.{k}_proj",) for k in "qkvo"}
    return names | {"decoder.block.*.layer.1.layer_norm": ("model.layers.*.cross_attention_layernorm",)}


FAMILIES: dict[str, Family] = {
    "qwen3": Family(
        help="decoder: RMS norm before, rotary positions, grouped queries with QK-norm, SwiGLU: the architecture of Qwen3",
        architecture="Qwen3ForCausalLM",
        classifier="Qwen3ForSequenceClassification",
        fixed={**_LLAMA_FIXED, "qk_norm": True},
        fields=_LLAMA,
        only=_LLAMA_ONLY,
        read=_read_rope,
        write=_write_rope,
        also=_ROPE_KEYS,
    ),
    "llama": Family(
        help="decoder: the same without QK-norm, which most other tools run (Touvron et al. 2023)",
        architecture="LlamaForCausalLM",
        classifier="LlamaForSequenceClassification",
        fixed={**_LLAMA_FIXED, "qk_norm": False},
        fields=_LLAMA,
        only=_LLAMA_ONLY,
        read=_read_rope,
        write=_write_rope,
        also=_ROPE_KEYS,
    ),
    "gpt2": Family(
        help="decoder: layer norm before, learned positions, GELU, biases (Radford et al. 2019)",
        architecture="GPT2LMHeadModel",
        classifier="GPT2ForSequenceClassification",
        fixed={"stack": "decoder", "activation": "gelu_tanh", "norm": "layer", "norm_place": "pre", "bias": True, "positions": "learned", "qk_norm": False, "position_offset": 0, "token_types": 0},
        fields={
            "vocab_size": ("vocab_size", REQUIRED),
            "num_layers": ("n_layer", REQUIRED),
            "dim": ("n_embd", REQUIRED),
            "num_heads": ("n_head", REQUIRED),
            "ffn_dim": ("n_inner", None),
            "norm_eps": ("layer_norm_epsilon", 1e-5),
            "max_seq_len": ("n_positions", 1024),
            "tie_embeddings": ("tie_word_embeddings", True),
            "dropout": ("resid_pdrop", 0.1),
            "attention_dropout": ("attn_pdrop", 0.1),
        },
        only={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False, True),
            "add_cross_attention": (False,),
        },
        write=lambda config: {"embd_pdrop": config.dropout},
        also=r"embd_pdrop|summary_\w+",
        names={
            "transformer.wte": ("model.embed_tokens",),
            "transformer.wpe": ("model.embed_positions",),
            "transformer.h.*.ln_1": ("model.layers.*.input_layernorm",),
            "transformer.h.*.attn.c_attn": tuple(f"model.layers.*.self_attn.{k}_proj" for k in "qkv"),
            "transformer.h.*.attn.c_proj": ("model.layers.*.self_attn.o_proj",),
            "transformer.h.*.ln_2": ("model.layers.*.post_attention_layernorm",),
            "transformer.h.*.mlp.c_fc": ("model.layers.*.mlp.up_proj",),
            "transformer.h.*.mlp.c_proj": ("model.layers.*.mlp.down_proj",),
            "transformer.ln_f": ("model.norm",),
        },
        transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        prefix="transformer.",
        ignored=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
    ),
    "bert": Family(
        help="encoder: layer norm behind, learned positions, token types, GELU, biases (Devlin et al. 2018); RoBERTa is read and trained further too",
        architecture="BertForMaskedLM",
        fixed={**_BERT_FIXED, "position_offset": 0},
        fields={**_BERT, "max_seq_len": ("max_position_embeddings", 512)},
        only=_BERT_ONLY,
        names=_bert_names("bert", {"cls.predictions.transform.dense": ("head.dense",), "cls.predictions.transform.LayerNorm": ("head.norm",), "cls.predictions": ("head",)}),
        ignored=r"bert\.pooler\..*|cls\.seq_relationship\..*|cls\.predictions\.decoder\..*|.*position_ids",
    ),
    "roberta": Family(
        help="encoder: BERT's blocks, positions counted from behind the padding id (Liu et al. 2019)",
        architecture="RobertaForMaskedLM",
        fixed=_BERT_FIXED,
        fields=_BERT,
        only=_BERT_ONLY,
        read=_read_roberta,
        write=lambda config: {"max_position_embeddings": config.max_seq_len + config.position_offset, "pad_token_id": config.position_offset - 1},
        also="max_position_embeddings",
        names=_bert_names("roberta", {"lm_head.dense": ("head.dense",), "lm_head.layer_norm": ("head.norm",), "lm_head": ("head",)}),
        ignored=r"roberta\.pooler\..*|lm_head\.decoder\..*|.*position_ids",
    ),
    "modernbert": Family(
        help="encoder: layer norm before, rotary positions, local and global blocks, GeGLU, no biases (Warner et al. 2024)",
        architecture="ModernBertForMaskedLM",
        fixed={
            "stack": "encoder", "activation": "geglu", "norm": "layer", "norm_place": "pre", "bias": False, "positions": "rope", "qk_norm": False, "first_norm": False, "embedding_norm": True,
            "head_transform": True, "tie_embeddings": True, "token_types": 0,
        },
        fields={
            "vocab_size": ("vocab_size", REQUIRED),
            "num_layers": ("num_hidden_layers", REQUIRED),
            "dim": ("hidden_size", REQUIRED),
            "num_heads": ("num_attention_heads", REQUIRED),
            "ffn_dim": ("intermediate_size", REQUIRED),
            "norm_eps": ("norm_eps", 1e-5),
            "max_seq_len": ("max_position_embeddings", 8192),
            "local_window": ("local_attention", 128),
            "dropout": ("mlp_dropout", 0.0),
            "attention_dropout": ("attention_dropout", 0.0),
        },
        only={
            "hidden_activation": ("gelu",), "norm_bias": (False,), "attention_bias": (False,), "mlp_bias": (False,), "decoder_bias": (True,), "classifier_bias": (False,), "classifier_activation": ("gelu",),
            "tie_word_embeddings": (True,), "position_embedding_type": ("absolute", "sans_pos"),
        },
        read=_read_modernbert,
        write=_write_modernbert,
        also=r"layer_types|global_attn_every_n_layers|global_rope_theta|local_rope_theta|rope_parameters|embedding_dropout|deterministic_flash_attn|sparse_pred\w+|layer_norm_eps",
        names={
            "model.embeddings.tok_embeddings": ("model.embed_tokens",),
            "model.embeddings.norm": ("model.embed_norm",),
            "model.layers.*.attn_norm": ("model.layers.*.input_layernorm",),
            "model.layers.*.attn.Wqkv": tuple(f"model.layers.*.self_attn.{k}_proj" for k in "qkv"),
            "model.layers.*.attn.Wo": ("model.layers.*.self_attn.o_proj",),
            "model.layers.*.mlp_norm": ("model.layers.*.post_attention_layernorm",),
            "model.layers.*.mlp.Wi": ("model.layers.*.mlp.gate_proj", "model.layers.*.mlp.up_proj"),
            "model.layers.*.mlp.Wo": ("model.layers.*.mlp.down_proj",),
            "model.final_norm": ("model.norm",),
            "decoder": ("head",),
        },
        ignored=r"decoder\.weight",
    ),
    "t5": Family(
        help="encoder-decoder: RMS norm before, relative positions, GeGLU, no biases: T5 1.1 (Raffel et al. 2019, Shazeer 2020)",
        architecture="T5ForConditionalGeneration",
        fixed={
            "stack": "encoder-decoder", "activation": "geglu_tanh", "norm": "rms", "norm_place": "pre", "bias": False, "positions": "relative", "qk_norm": False, "scale_attention": False,
        },
        fields={
            "vocab_size": ("vocab_size", REQUIRED),
            "num_layers": ("num_layers", REQUIRED),
            "num_decoder_layers": ("num_decoder_layers", None),
            "dim": ("d_model", REQUIRED),
            "num_heads": ("num_heads", REQUIRED),
            "head_dim": ("d_kv", 64),
            "ffn_dim": ("d_ff", REQUIRED),
            "norm_eps": ("layer_norm_epsilon", 1e-6),
            "relative_buckets": ("relative_attention_num_buckets", 32),
            "relative_max_distance": ("relative_attention_max_distance", 128),
            "max_seq_len": ("n_positions", 512),
            "dropout": ("dropout_rate", 0.1),
        },
        only={"is_decoder": (False,)},
        read=_read_t5,
        write=_write_t5,
        also=r"feed_forward_proj|dense_act_fn|is_gated_act|tie_word_embeddings|scale_decoder_outputs",
        names=_t5_names(),
        ignored=r"(encoder|decoder)\.embed_tokens\.weight|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
}  # fmt: skip
"""Rows by the `model_type` of config.json. `family_of` takes the first that fits, so bert stands before roberta."""


def load_config(directory: Path) -> ModelConfig:
    """Read config.json of a supported family; refuse what would silently be computed otherwise."""
    path = directory / "config.json"
    if not path.is_file():
        raise InputError(f"{directory}: no config.json, so this is not a model directory", hint="llmpipe pretrain --input TOKENS --output DIR makes one")
    raw = read_json(path)
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in FAMILIES:
        raise InputError(f"{path}: model_type {kind!r} is not supported", hint=f"supported: {', '.join(FAMILIES)}")
    try:
        return ModelConfig(**read_options(FAMILIES[kind], raw))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        shown = str(error) if isinstance(error, ValueError) else f"not a whole {kind} config ({error!r})"
        raise InputError(f"{path}: {shown}") from None
