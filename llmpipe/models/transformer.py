"""The Transformer: RMSNorm, rotary positions, grouped-query attention with QK-norm, SwiGLU, tied embeddings.

    model = Transformer(ModelConfig(vocab_size=4096, num_layers=4, dim=256, num_heads=4))
    loss = model(ids, targets)              # (B, T) each; the summed cross-entropy, what training minimises
    logits = model(ids)                     # (B, T, V)

The architecture and every parameter's name are those of Qwen3 in `transformers` (of Llama, with `qk_norm=False`), so a
Hugging Face export is the state dict itself: see models/hf.py. Shapes in comments: batch B, tokens T, keys S, width C,
heads H, head width D, vocabulary V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpipe.models.documents import Spans, attend_within, document_mask
from llmpipe.models.linear_loss import IGNORE, linear_cross_entropy
from llmpipe.models.rms_norm import RMSNorm

__all__ = ["IGNORE", "KVCache", "ModelConfig", "Transformer"]


MAX_PLAIN_TOKENS = 1024  # above, the scores (T x T a head) cost more than they save


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model; all that is needed to build it."""

    kind: Literal["gpt"] = "gpt"
    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int = 0
    """Key and value heads, each shared by num_heads / num_kv_heads query heads; 0: as many as num_heads."""
    head_dim: int = 0
    """0: dim / num_heads."""
    ffn_dim: int = 0
    """Width inside the SwiGLU; 0: 8/3 of dim, rounded up to a multiple of 64, which costs what a 4x plain MLP does."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    tie_embeddings: bool = True
    max_seq_len: int = 1024
    """Longest sequence that the positions are made for; more is an error."""

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # frozen: this is where derived defaults are filled in
        set_(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        set_(self, "head_dim", self.head_dim or self.dim // self.num_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs")
        set_(self, "ffn_dim", self.ffn_dim or -(-8 * self.dim // 3 // 64) * 64)


class Transformer(nn.Module):
    """A decoder-only language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.training_loss: Callable[..., Tensor] = linear_cross_entropy
        """What `forward` computes while training; pretrain may set a regularised one."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V); with `targets` (B, T) instead the cross-entropy summed over those that are not IGNORE."""
        hidden = self.hidden(ids)
        if targets is None:
            return self.logits(hidden)
        loss = self.training_loss if self.training else linear_cross_entropy
        return loss(hidden, self.output_weight(), targets)

    def hidden(self, ids: Tensor, *, cache: KVCache | None = None, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Return the last hidden states (B, T, C), after the final norm.

        `cache` holds what came before `ids` and grows by them. `attention_mask` (B, S), 1 or True where a key may be
        seen, S counting the cached ones too: needed for padding on the left only, since no token sees what is on its
        right. `positions` (T,) default to what follows the cache.
        """
        return self.model(ids, cache=cache, attention_mask=attention_mask, positions=positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary: (…, C) -> (…, V)."""
        return F.linear(hidden, self.output_weight())

    def output_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights: embeddings N(0, 0.02), matrices into a block uniform with std 1/sqrt(fan-in), matrices out of it zero.

        Zero output projections make every block the identity at the start, whatever the depth; the norms hide the small scale of the
        embeddings from the blocks, and the head that is tied to them starts with logits near zero.
        """
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                p.zero_()
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                p.normal_(0.0, 0.02, generator=generator)
            else:
                bound = (3.0 / p.shape[1]) ** 0.5
                p.uniform_(-bound, bound, generator=generator)


class KVCache:
    """Keys and values of the tokens so far, in buffers allocated once."""

    def __init__(self, config: ModelConfig, *, batch_size: int, max_len: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def max_len(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, Hkv, T, D) behind what is there and return all of it, (B, Hkv, S, D). `length` moves at the end of a pass."""
        end = self.length + keys.shape[2]
        if end > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens, {end} are needed")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep or repeat rows of the batch: one prompt, several continuations."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


class Decoder(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.separator: int | None = None
        """The id that ends a document, if no token may see another document's (models/documents.py)."""
        self._tables: tuple[Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, *, cache: KVCache | None, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        length, past = ids.shape[1], cache.length if cache is not None else 0
        if past + length > self.config.max_seq_len:
            raise ValueError(f"{past + length} tokens are more than max_seq_len {self.config.max_seq_len}")
        cos, sin = self._rotations(ids.device)
        where: Any = slice(past, past + length) if positions is None else positions
        mask = attention_bias(length, past, attention_mask, ids.device)
        if self.separator is not None and cache is None:
            mask = document_mask(ids, self.separator, causal=True)
        x = self.embed_tokens(ids).to(compute_dtype(ids.device, self.embed_tokens.weight.dtype))
        shape = (-1, self.config.num_heads, -1)  # spread over the heads, so that products run along whole rows
        rotation = cos[where, None].to(x.dtype).expand(shape).contiguous(), sin[where, None].to(x.dtype).expand(shape).contiguous()
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        if cache is not None:
            cache.length += length
        return self.norm(x)

    def _rotations(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (max_seq_len, D) in fp32; made on first use, so that they survive meta-device construction."""
        if self._tables is None or self._tables[0].device != device:
            half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32) / self.config.head_dim
            angles = torch.outer(torch.arange(self.config.max_seq_len, dtype=torch.float32), self.config.rope_theta**-half)
            cos, sin = angles.cos(), angles.sin()
            self._tables = torch.cat((cos, cos), dim=-1).to(device), torch.cat((-sin, sin), dim=-1).to(device)
        return self._tables


def compute_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream: autocast's where that is on, so that no product casts its input again."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else stored


def attention_bias(length: int, past: int, keep: Tensor | None, device: torch.device) -> Tensor | None:
    """Make the mask (B or 1, 1, T, S) of who may see whom, True where they may; None where plain causality or nothing is needed."""
    if keep is None and (past == 0 or length == 1):
        return None  # is_causal, or one token that sees all that came before it: no mask keeps SDPA on its fast path
    seen = torch.arange(past + length, device=device) <= torch.arange(past, past + length, device=device)[:, None]
    if keep is None:
        return seen[None, None]
    own = torch.eye(past + length, dtype=torch.bool, device=device)[past:]  # a padding token sees itself, or its softmax is 0/0
    return (seen & (keep[:, None, None, :].bool() | own)).contiguous()


class Block(nn.Module):
    """Attention and SwiGLU, each behind a norm and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | Spans | None, cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Causal attention with grouped queries, rotary positions and an RMS norm on each head's queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.groups = config.num_heads // config.num_kv_heads
        self.q_proj = nn.Linear(config.dim, config.num_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.num_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.num_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.dim, bias=False)
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | Spans | None, cache: KVCache | None) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, T, H, D)
        q, k, v = rotate(self.q_norm(q), rotation).transpose(1, 2), rotate(self.k_norm(k), rotation).transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if self.groups > 1:
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        causal = mask is None and q.shape[2] > 1
        if isinstance(mask, Spans):
            y = attend_within(q, k, v, mask, causal=True)
        elif causal and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= MAX_PLAIN_TOKENS:
            y = plain_causal_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.o_proj(y.transpose(1, 2).flatten(2))


def plain_causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as three products with the scores held, (B, H, T, D) each.

    The CPU's flash kernel runs its backward pass in bf16 at a fifth of this speed for 256 tokens (43 against 8 ms).
    """
    (B, H, T, D), S = q.shape, k.shape[2]
    future = torch.full((T, S), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    scores = torch.baddbmm(future.expand(B * H, T, S), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=D**-0.5)
    return (torch.softmax(scores, dim=-1) @ v.flatten(0, 1)).view(B, H, T, D)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs (i, i + D/2) of (B, T, H, D) by their position's angle (the half-split layout of Llama and Qwen)."""
    cos, sin = (t[:, : x.shape[2]] for t in rotation)  # there may be fewer key heads than query heads
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
