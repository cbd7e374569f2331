"""From settings to a concrete run: the model's shape, its size, its batch and how many steps.

    shape = shape_of(config, vocab_size=4096, num_tokens=900_000)

Pure arithmetic, no torch: `--dry-run` and training read the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmpipe.errors import UsageError
from llmpipe.pretrain.stage import DEFAULT_DEPTH, DEFAULT_TOKENS_PER_PARAM, Config

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
    batch_size: int
    """Sequences a step."""
    micro_batch: int
    steps: int | None
    """None while `hours` awaits its probe."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len

    @property
    def flops_per_token(self) -> float:
        """6 x the parameters that multiply (the head counts, the look-up does not) + 12 x layers x width x context, forward and backward."""
        multiplied = self.num_params - self.num_embedding + self.vocab_size * self.dim
        return 6.0 * multiplied + 12.0 * self.num_layers * self.num_heads * self.head_dim * self.seq_len


def shape_of(config: Config, *, vocab_size: int) -> Shape:
    """Decide sizes, batch and steps. Raises `UsageError` for what does not fit together."""
    m = config.model
    depth = config.depth or DEFAULT_DEPTH
    num_layers, dim = m.num_layers or depth, m.dim or 64 * depth
    num_heads = m.num_heads or max(1, dim // (64 if dim < 512 else 128))
    num_kv_heads = m.num_kv_heads or num_heads
    if dim % num_heads or num_heads % num_kv_heads or (dim // num_heads) % 2:
        raise UsageError(f"model: dim {dim}, num_heads {num_heads} and num_kv_heads {num_kv_heads} do not divide evenly", hint="dim must be an even multiple of num_heads, and num_heads a multiple of num_kv_heads")
    head_dim = dim // num_heads
    ffn_dim = m.ffn_dim or -(-8 * dim // 3 // 64) * 64
    attention = dim * head_dim * 2 * (num_heads + num_kv_heads)
    norms = 2 * dim + (2 * head_dim if m.qk_norm else 0)
    embedding = vocab_size * dim * (1 if m.tie_embeddings else 2)
    params = embedding + num_layers * (attention + 3 * dim * ffn_dim + norms) + dim
    seq_len = config.seq_len or (256 if dim < 384 else 512 if dim < 768 else 1024)
    batch_size = _batch_size(config, params, seq_len)
    micro = (0 if config.micro_batch == "auto" else config.micro_batch) or max(1, MICRO_TOKENS[config.device if config.device != "auto" else "cpu"] // seq_len)
    shape = Shape(
        num_layers=num_layers, dim=dim, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, ffn_dim=ffn_dim, vocab_size=vocab_size,
        seq_len=seq_len, num_params=params, num_embedding=embedding, batch_size=batch_size, micro_batch=min(micro, batch_size), steps=None,
    )
    if config.hours is not None:
        return shape
    return with_steps(shape, config.steps or math.ceil(_wanted_tokens(config, params) / shape.tokens_per_step))


def with_steps(shape: Shape, steps: int) -> Shape:
    from dataclasses import replace

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
