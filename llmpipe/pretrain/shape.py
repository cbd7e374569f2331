"""From settings to a concrete run: the model's shape, its size, its batch and how many steps.

    shape = shape_of(config, vocab_size=4096, num_tokens=900_000)

Pure arithmetic, no torch: `--dry-run` and training read the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from llmpipe.errors import InputError, UsageError
from llmpipe.models.config import ModelConfig, count_parameters
from llmpipe.models.families import load_config
from llmpipe.models.table import MODELS
from llmpipe.pretrain.stage import DEFAULT_DEPTH, DEFAULT_TOKENS_PER_PARAM, Config
from llmpipe.training.noise import MLM_RATE, SPAN_RATE, span_counts, span_window

MIN_STEPS = 500  # fewer, larger steps learn less from the same tokens
MIN_BATCH_TOKENS = 8_192  # below, Muon's own products cost more than a tenth of a step
MICRO_TOKENS = {"cpu": 4_096, "cuda": 32_768}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What `Config` leaves to us, decided."""

    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    seq_len: int
    num_params: int
    num_embedding: int
    """Of them in the embedding and, untied, the head."""
    model: ModelConfig
    """All of it."""
    sample_tokens: int
    """Tokens of text in a sequence: what `seq_len` holds beside the special tokens that an objective adds."""
    target_tokens: int
    """Of a sequence, those that the head predicts."""
    batch_size: int
    """Sequences a step."""
    micro_batch: int
    steps: int | None
    """None while `hours` awaits its probe."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sample_tokens

    @property
    def flops_per_token(self) -> float:
        """Forward and backward: 6 x the parameters that multiply + 12 x layers x width x context, for a token that passes through them.

        The look-up does not multiply; the head does, for the tokens that it predicts. An encoder-decoder's two stacks
        see different tokens.
        """
        m, counted = self.model, count_parameters(self.model)
        width, read, written = m.num_heads * m.head_dim, self.seq_len, self.target_tokens
        head = 6.0 * (m.vocab_size * m.dim + (m.dim * m.dim if m.head_transform else 0)) * written
        if m.stack == "encoder-decoder":
            cross = m.num_decoder_layers * 2 * m.dim * m.num_kv_heads * m.head_dim  # keys and values of what the encoder read
            stacks = 6.0 * (counted.encoder * read + (counted.blocks - cross) * written + cross * read)
            scores = 12.0 * width * (m.num_layers * read * read + m.num_decoder_layers * written * (written + read))
        else:
            stacks, scores = 6.0 * counted.blocks * read, 12.0 * m.num_layers * width * read * read
        return (head + stacks + scores) / self.sample_tokens


def shape_of(config: Config, *, vocab_size: int) -> Shape:
    """Decide sizes, batch and steps. Raises `UsageError` for what does not fit together."""
    model = model_of(config, vocab_size=vocab_size) if config.init is None else model_from(config, vocab_size=vocab_size)
    counted = count_parameters(model)
    seq_len = model.max_seq_len if config.init is None else config.seq_len or min(model.max_seq_len, default_seq_len(model.dim))
    if seq_len > model.max_seq_len and model.positions != "relative":
        raise UsageError(f"seq_len {seq_len} is more than the {model.max_seq_len} positions of {config.init}", hint=f"set seq_len to {model.max_seq_len} or less")
    if config.doc_mask and (model.stack == "encoder-decoder" or model.local_window or model.attention_dropout):
        raise UsageError("doc_mask is for models whose blocks all see the whole text, without dropout on attention weights", hint="leave doc_mask out, or model.attention_dropout; not for t5 and modernbert")
    sample_tokens, target_tokens = sequence_tokens(config, seq_len)
    batch_size = _batch_size(config, counted.all, seq_len)
    micro = (0 if config.micro_batch == "auto" else config.micro_batch) or max(1, MICRO_TOKENS[config.device if config.device != "auto" else "cpu"] // seq_len)
    shape = Shape(
        num_layers=model.num_layers, dim=model.dim, num_heads=model.num_heads, num_kv_heads=model.num_kv_heads, head_dim=model.head_dim, ffn_dim=model.ffn_dim, vocab_size=model.vocab_size,
        seq_len=seq_len, num_params=counted.all, num_embedding=counted.embedding, model=model, sample_tokens=sample_tokens, target_tokens=target_tokens, batch_size=batch_size,
        micro_batch=min(micro, batch_size), steps=None,
    )  # fmt: skip
    if config.hours is not None:
        return shape
    return with_steps(shape, config.steps or math.ceil(_wanted_tokens(config, counted.all) / shape.tokens_per_step))


def model_of(config: Config, *, vocab_size: int) -> ModelConfig:
    """Turn settings into the shape of a new model."""
    m = config.model
    family = MODELS["llama" if m.kind == "gpt" and m.qk_norm is False else m.kind]
    depth = config.depth or DEFAULT_DEPTH
    num_layers, dim = m.num_layers or depth, m.dim or 64 * depth
    small = dim < 512 or family.fixed["stack"] != "decoder"
    num_heads = m.num_heads or max(1, dim // (64 if small else 128))
    num_kv_heads = m.num_kv_heads or num_heads
    if dim % num_heads or num_heads % num_kv_heads or (dim // num_heads) % 2:
        raise UsageError(f"model: dim {dim}, num_heads {num_heads} and num_kv_heads {num_kv_heads} do not divide evenly", hint="dim must be an even multiple of num_heads, and num_heads a multiple of num_kv_heads")
    options = {**family.fixed, **NEW.get(m.kind, {})}
    for name, fits in (("num_kv_heads", "num_kv_heads" in family.fields), ("rope_theta", options["positions"] == "rope"), ("qk_norm", m.kind == "gpt"), ("tie_embeddings", "tie_embeddings" not in family.fixed)):
        if (value := getattr(m, name)) is None:
            continue
        if not fits:
            raise UsageError(f"model.{name} {value} has no meaning for model.kind {m.kind}", hint=f"leave model.{name} out")
        options[name] = value
    return ModelConfig(
        vocab_size=vocab_size, num_layers=num_layers, dim=dim, num_heads=num_heads, ffn_dim=m.ffn_dim or 0, dropout=m.dropout, attention_dropout=m.attention_dropout,
        max_seq_len=config.seq_len or default_seq_len(dim), **options,
    )  # fmt: skip


NEW: dict[str, dict[str, Any]] = {
    "gpt2": {"norm_eps": 1e-5},
    "bert": {"norm_eps": 1e-12, "token_types": 2},
    "modernbert": {"norm_eps": 1e-5, "local_window": 128, "global_every": 3, "rope_theta": 160_000.0},
    "t5": {"tie_embeddings": False},
}
"""What new models of a kind have beside the options that all of its family have: their papers' values."""


def default_seq_len(dim: int) -> int:
    return 256 if dim < 384 else 512 if dim < 768 else 1024


def model_from(config: Config, *, vocab_size: int) -> ModelConfig:
    """Read the shape of the model that training goes on from; dropout is this run's."""
    assert config.init is not None
    model = load_config(config.init)
    if model.vocab_size < vocab_size:
        raise InputError(f"{config.init}: a vocabulary of {model.vocab_size:,} ids, the tokens' tokenizer has {vocab_size:,}", hint="tokenize with the model's own tokenizer: llmpipe tokenize --tokenizer DIR")
    return replace(model, dropout=config.model.dropout, attention_dropout=config.model.attention_dropout)


def fitting_objective(config: Config) -> str:
    """Return what the model is trained for: the objective that was asked for if it fits the model, else the one that does."""
    stack = load_config(config.init).stack if config.init is not None else MODELS[config.model.kind].fixed["stack"]
    fitting = {"decoder": "clm", "encoder": "mlm", "encoder-decoder": "span"}[stack]
    if config.objective not in (None, fitting):
        raise UsageError(f"objective {config.objective} does not fit {config.init or f'model.kind {config.model.kind}'}, which is {'an' if stack[0] == 'e' else 'a'} {stack}", hint=f"leave objective out: it is {fitting}")
    return fitting


def sequence_tokens(config: Config, seq_len: int) -> tuple[int, int]:
    """Return how many tokens of text a sequence is made of, and how many of its places the head predicts."""
    objective = config.objective or fitting_objective(config)
    if objective == "clm":
        return seq_len, seq_len
    if seq_len < 8:
        raise UsageError(f"seq_len {seq_len} is too short to hide anything in", hint="set seq_len to 8 or more")
    if objective == "mlm":
        return seq_len - 2, max(1, round((config.noise.rate or MLM_RATE) * (seq_len - 2)))
    rate = config.noise.rate or SPAN_RATE
    length = span_window(seq_len, rate, config.noise.mean_span)
    return length, sum(span_counts(length, rate, config.noise.mean_span)) + 1


def with_steps(shape: Shape, steps: int) -> Shape:
    return replace(shape, steps=max(1, steps))


def _batch_size(config: Config, params: int, seq_len: int) -> int:
    """Sequences a step: what was asked for, else the OLMo ladder's 2,048 x 160 x (N / 108M)^(2/3) tokens in powers of two."""
    if config.batch_tokens is not None:
        if config.batch_tokens < seq_len:
            raise UsageError(f"batch_tokens {config.batch_tokens} is less than one sequence of {seq_len}", hint="raise batch_tokens or lower seq_len")
        return config.batch_tokens // seq_len
    tokens = 2 ** round(math.log2(2048 * 160 * (params / 108e6) ** (2 / 3)))
    if config.steps is None and config.hours is None:
        while tokens > MIN_BATCH_TOKENS and _wanted_tokens(config, params) / tokens < MIN_STEPS:
            tokens //= 2
    return max(1, max(tokens, MIN_BATCH_TOKENS) // seq_len)


def _wanted_tokens(config: Config, params: int) -> float:
    return config.tokens or (config.tokens_per_param or DEFAULT_TOKENS_PER_PARAM) * params
