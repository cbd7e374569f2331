"""The Transformer: decoder, encoder and encoder-decoder of one attention, one feed-forward network and one block.

    model = Transformer(ModelConfig(vocab_size=4096, num_layers=4, dim=256, num_heads=4))
    loss = model(ids, targets)              # (B, T) each; the summed cross-entropy, what training minimises
    logits = model(ids)                     # (B, T, V)

    loss = bert(ids, targets, places=places)                      # (B, T), (B, M), (B, M): the head sees the masked places only
    loss = t5(ids, targets, decoder_ids=shifted)                  # (B, S), (B, T), (B, T)

models/config.py lists the options, whose defaults make Qwen3; parameters are named as Qwen3's in `transformers`, and
models/families.py translates to the names of other families. Shapes in comments: batch B, tokens T, keys S, width C,
heads H, head width D, vocabulary V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmpipe.models.config import GATED, ModelConfig
from llmpipe.models.documents import Spans, attend_within, document_mask
from llmpipe.models.linear_loss import IGNORE, linear_cross_entropy
from llmpipe.models.norms import make_norm

__all__ = ["IGNORE", "KVCache", "ModelConfig", "Transformer"]


MAX_PLAIN_TOKENS = 1024  # above, the scores (T x T a head) cost more than they save

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


class Transformer(nn.Module):
    """A language model: a stack of blocks (two for an encoder-decoder) and the output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.stack == "encoder-decoder":
            self.encoder = Stack(replace(config, stack="encoder", num_decoder_layers=0), embeddings=False)
            self.model = Stack(replace(config, num_layers=config.num_decoder_layers), cross=True)
        else:
            self.model = Stack(config)
        if config.head_transform:
            self.head = HeadTransform(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.training_loss: Callable[..., Tensor] = linear_cross_entropy
        """What `forward` computes while training; pretrain may set a regularised one."""

    def forward(self, ids: Tensor, targets: Tensor | None = None, *, places: Tensor | None = None, decoder_ids: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V); with `targets` (B, T) instead the cross-entropy summed over those that are not IGNORE.

        `places` (B, M) are the positions that are predicted, all if None. An encoder-decoder reads `ids` and is asked
        for the tokens after each of `decoder_ids`.
        """
        hidden = self.hidden(ids, decoder_ids=decoder_ids)
        if places is not None:
            hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        if targets is None:
            return self.logits(hidden)
        loss = self.training_loss if self.training else linear_cross_entropy
        return loss(self.before_head(hidden), self.output_weight(), targets, bias=self.output_bias())

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        decoder_ids: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> Tensor:
        """Return the last hidden states (B, T, C), after the final norm.

        `cache` holds what came before `ids` and grows by them. `attention_mask` (B, S), 1 or True where a key may be
        seen, S counting the cached ones too: a decoder needs it for padding on the left only, since no token sees what
        is on its right. `positions` (T,) default to what follows the cache. For an encoder-decoder `ids` and
        `attention_mask` are the encoder's, the rest is the decoder's; `memory` (B, S, C) from `encode` saves its pass.
        """
        if self.config.stack != "encoder-decoder":
            return self.model(ids, cache=cache, attention_mask=attention_mask, positions=positions)
        if decoder_ids is None:
            raise ValueError("an encoder-decoder needs decoder_ids beside the ids that it reads")
        memory = self.encode(ids, attention_mask=attention_mask) if memory is None else memory
        return self.model(decoder_ids, cache=cache, memory=memory, memory_mask=attention_mask)

    def encode(self, ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """Run the encoder of an encoder-decoder: (B, S) -> (B, S, C)."""
        return self.encoder.blocks(self.model.embed(ids, slice(0, ids.shape[1])), attention_mask=attention_mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary: (…, C) -> (…, V)."""
        return F.linear(self.before_head(hidden), self.output_weight(), self.output_bias())

    def before_head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into what the output matrix multiplies."""
        if self.config.head_transform:
            hidden = self.head(hidden)
        return hidden * self.config.dim**-0.5 if self.config.scale_output else hidden

    def output_weight(self) -> Tensor:
        return self.model.embed_tokens.weight if self.config.tie_embeddings else self.lm_head.weight

    def output_bias(self) -> Tensor | None:
        return self.head.bias if self.config.head_transform else None

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw weights: tables N(0, 0.02), matrices into a block uniform with std 1/sqrt(fan-in), matrices out of it zero.

        Zero output projections make every block the identity at the start, whatever the depth; the norms hide the small scale of the
        embeddings from the blocks, and the head that is tied to them starts with logits near zero.
        """
        for name, p in self.named_parameters():
            if p.ndim == 1:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                p.zero_()
            elif ".embed_" in name or name.endswith(("relative_bias.weight", "lm_head.weight")):
                p.normal_(0.0, 0.02, generator=generator)
            else:
                bound = (3.0 / p.shape[1]) ** 0.5
                if name.endswith("q_proj.weight") and not self.config.scale_attention:
                    bound *= self.config.head_dim**-0.5  # the scale that the scores lack
                p.uniform_(-bound, bound, generator=generator)


class HeadTransform(nn.Module):
    """What BERT puts between the last block and the output matrix; the output layer's bias lies here too."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim, bias=config.bias)
        self.norm = make_norm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(hidden)))


class KVCache:
    """Keys and values of the tokens so far, in buffers allocated once; for an encoder-decoder also those of what it read."""

    def __init__(self, config: ModelConfig, *, batch_size: int, max_len: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        shape = (config.num_generating_layers, batch_size, config.num_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}
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
        self.memory = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.memory.items()}


class Stack(nn.Module):
    """Embeddings, blocks, final norm."""

    def __init__(self, config: ModelConfig, *, embeddings: bool = True, cross: bool = False) -> None:
        super().__init__()
        self.config, self.causal = config, config.stack != "encoder"
        if embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
            if config.positions == "learned":
                self.embed_positions = nn.Embedding(config.max_seq_len + config.position_offset, config.dim)
            if config.token_types:
                self.embed_types = nn.Embedding(config.token_types, config.dim)
            if config.embedding_norm:
                self.embed_norm = make_norm(config)
        if config.positions == "relative":
            self.relative_bias = nn.Embedding(config.relative_buckets, config.num_heads)
        self.layers = nn.ModuleList(Block(config, i, cross=cross) for i in range(config.num_layers))
        self.norm = make_norm(config) if config.norm_place == "pre" else nn.Identity()
        self.separator: int | None = None
        """The id that ends a document, if no token may see another document's (models/documents.py)."""
        self._tables: dict[tuple[float, torch.device], tuple[Tensor, Tensor]] = {}

    def forward(
        self, ids: Tensor, *, cache: KVCache | None = None, attention_mask: Tensor | None = None, positions: Tensor | None = None,
        memory: Tensor | None = None, memory_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        past = cache.length if cache is not None else 0
        where: Any = slice(past, past + ids.shape[1]) if positions is None else positions
        if past + ids.shape[1] > self.config.max_seq_len and self.config.positions != "relative":
            raise ValueError(f"{past + ids.shape[1]} tokens are more than max_seq_len {self.config.max_seq_len}")
        apart = document_mask(ids, self.separator, causal=self.causal) if self.separator is not None and cache is None else None
        return self.blocks(self.embed(ids, where), cache=cache, attention_mask=attention_mask, where=where, memory=memory, memory_mask=memory_mask, apart=apart)

    def embed(self, ids: Tensor, where: slice | Tensor) -> Tensor:
        """Look up (B, T) tokens at the positions `where`, and their norm if there is one: (B, T, C)."""
        x = self.embed_tokens(ids)
        if self.config.positions == "learned":
            x = x + self.embed_positions.weight[self.config.position_offset :][where]
        if self.config.token_types:
            x = x + self.embed_types.weight[0]
        x = x.to(compute_dtype(ids.device, self.embed_tokens.weight.dtype))
        x = self.embed_norm(x) if self.config.embedding_norm else x
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    def blocks(
        self, x: Tensor, *, cache: KVCache | None = None, attention_mask: Tensor | None = None, where: slice | Tensor | None = None,
        memory: Tensor | None = None, memory_mask: Tensor | None = None, apart: Tensor | Spans | None = None,
    ) -> Tensor:  # fmt: skip
        """Pass embedded tokens (B, T, C) through every block and the final norm. `apart`: a document mask in place of the plain one."""
        length, past = x.shape[1], cache.length if cache is not None else 0
        where = slice(past, past + length) if where is None else where
        mask = self._mask(length, past, attention_mask, x, window=0) if apart is None else apart
        views = {False: (self._rotation(self.config.rope_theta, where, x), mask)}
        if self.config.local_window:
            views[True] = self._rotation(self.config.local_rope_theta, where, x), self._mask(length, past, attention_mask, x, window=self.config.local_window)
        others = None if memory_mask is None else memory_mask[:, None, None, :].bool()  # (B, 1, 1, S)
        for number, layer in enumerate(self.layers):
            rotation, seen = views[self.config.is_local(number)]
            x = layer(x, rotation, seen, cache, memory, others)
        if cache is not None:
            cache.length += length
        x = self.norm(x)
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout and self.config.positions == "relative" else x

    def _mask(self, length: int, past: int, keep: Tensor | None, x: Tensor, *, window: int) -> Tensor | None:
        """Who may see whom: None where no mask is needed, True where they may, or with relative positions what is added to the scores."""
        seen = attention_bias(length, past, keep, x.device) if self.causal else bidirectional_mask(length, keep, x.device, window=window)
        if self.config.positions != "relative":
            return seen
        bias = self.relative_bias(self._buckets(length, past, x.device)).permute(2, 0, 1)[None].to(x.dtype)  # (1, H, T, S)
        if seen is None and self.causal and length > 1:
            seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril_()
        return bias if seen is None else bias.masked_fill(~seen, float("-inf"))

    def _buckets(self, length: int, past: int, device: torch.device) -> Tensor:
        """Number the distances from each of the last `length` tokens to all (T, S): near ones singly, far ones together (T5)."""
        distance = torch.arange(past + length, device=device) - torch.arange(past, past + length, device=device)[:, None]
        count, offset = self.config.relative_buckets, 0
        if not self.causal:  # half of the buckets for keys on the right
            count //= 2
            offset = (distance > 0) * count
        distance = distance.abs() if not self.causal else (-distance).clamp(min=0)
        exact = count // 2
        far = exact + (torch.log(distance.clamp(min=1) / exact) / math.log(self.config.relative_max_distance / exact) * (count - exact)).long()
        return offset + torch.where(distance < exact, distance, far.clamp(max=count - 1))

    def _rotation(self, theta: float, where: slice | Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and signed sines for positions `where`, (T, H, D): spread over the heads, so that products run along whole rows."""
        if self.config.positions != "rope":
            return None
        cos, sin = self._angles(theta, x.device)
        shape = (-1, self.config.num_heads, -1)
        return cos[where, None].to(x.dtype).expand(shape).contiguous(), sin[where, None].to(x.dtype).expand(shape).contiguous()

    def _angles(self, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables (max_seq_len, D) in fp32; made on first use, so that they survive meta-device construction."""
        if (theta, device) not in self._tables:
            half = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32) / self.config.head_dim
            angles = torch.outer(torch.arange(self.config.max_seq_len, dtype=torch.float32), theta**-half)
            cos, sin = angles.cos(), angles.sin()
            self._tables[theta, device] = torch.cat((cos, cos), dim=-1).to(device), torch.cat((-sin, sin), dim=-1).to(device)
        return self._tables[theta, device]


def compute_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of the residual stream: autocast's where that is on, so that no product casts its input again."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else stored


def attention_bias(length: int, past: int, keep: Tensor | None, device: torch.device) -> Tensor | None:
    """Make a decoder's mask (B or 1, 1, T, S), True where they may be seen; None where plain causality or nothing is needed."""
    if keep is None and (past == 0 or length == 1):
        return None  # is_causal, or one token that sees all that came before it: no mask keeps SDPA on its fast path
    seen = torch.arange(past + length, device=device) <= torch.arange(past, past + length, device=device)[:, None]
    if keep is None:
        return seen[None, None]
    own = torch.eye(past + length, dtype=torch.bool, device=device)[past:]  # a padding token sees itself, or its softmax is 0/0
    return (seen & (keep[:, None, None, :].bool() | own)).contiguous()


def bidirectional_mask(length: int, keep: Tensor | None, device: torch.device, *, window: int) -> Tensor | None:
    """Make an encoder's mask (B or 1, 1, T, T): all that is no padding and, with a window, at most half of it away."""
    near = None
    if window and length - 1 > window // 2:
        places = torch.arange(length, device=device)
        near = ((places - places[:, None]).abs() <= window // 2)[None, None]
    if keep is None:
        return near
    own = torch.eye(length, dtype=torch.bool, device=device)
    seen = keep[:, None, None, :].bool() | own
    return seen.contiguous() if near is None else (seen & near).contiguous()


class Block(nn.Module):
    """Attention and feed-forward network, each added to the stream; in a decoder beside an encoder, attention to its output between them.

    `input_layernorm` belongs to the attention and `post_attention_layernorm` to the network: before them, or, post-norm, behind.
    """

    def __init__(self, config: ModelConfig, layer: int, *, cross: bool = False) -> None:
        super().__init__()
        self.pre, self.dropout = config.norm_place == "pre", config.dropout
        self.input_layernorm = make_norm(config) if config.first_norm or layer else nn.Identity()
        self.self_attn = Attention(config, layer)
        if cross:
            self.cross_attention_layernorm = make_norm(config)
            self.cross_attn = Attention(config, layer, cross=True)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, mask: Tensor | Spans | None, cache: KVCache | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        if not self.pre:
            x = self.input_layernorm(x + self._drop(self.self_attn(x, rotation, mask, cache)))
            return self.post_attention_layernorm(x + self._drop(self.mlp(x)))
        x = x + self._drop(self.self_attn(self.input_layernorm(x), rotation, mask, cache))
        if memory is not None:
            x = x + self._drop(self.cross_attn(self.cross_attention_layernorm(x), None, memory_mask, cache, memory))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Attention(nn.Module):
    """Attention with grouped queries, optional rotary positions and RMS norms on each head's queries and keys."""

    def __init__(self, config: ModelConfig, layer: int, *, cross: bool = False) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.attention_dropout
        self.groups = config.num_heads // config.num_kv_heads
        self.causal = config.stack != "encoder" and not cross
        self.scale = config.head_dim**-0.5 if config.scale_attention else 1.0
        self.q_proj = nn.Linear(config.dim, config.num_heads * config.head_dim, bias=config.bias)
        self.k_proj = nn.Linear(config.dim, config.num_kv_heads * config.head_dim, bias=config.bias)
        self.v_proj = nn.Linear(config.dim, config.num_kv_heads * config.head_dim, bias=config.bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.dim, bias=config.bias)
        self.q_norm = make_norm(config, width=config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, width=config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, mask: Tensor | Spans | None, cache: KVCache | None, memory: Tensor | None = None) -> Tensor:
        q = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))  # (B, T, H, D)
        q = (q if rotation is None else rotate(q, rotation)).transpose(1, 2)
        k, v = self._keys_values(x if memory is None else memory, rotation, cache, cross=memory is not None)
        if self.groups > 1:
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and mask is None and q.shape[2] > 1
        if isinstance(mask, Spans):
            y = attend_within(q, k, v, mask, causal=self.causal)
        elif q.device.type == "cpu" and q.dtype == torch.bfloat16 and 1 < q.shape[2] <= MAX_PLAIN_TOKENS and k.shape[2] <= MAX_PLAIN_TOKENS:
            y = plain_attention(q, k, v, mask=mask, causal=causal, scale=self.scale, dropout=dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, dropout_p=dropout)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _keys_values(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, cache: KVCache | None, *, cross: bool) -> tuple[Tensor, Tensor]:
        """Keys and values (B, Hkv, S, D) of all that may be seen: of the tokens so far, or of what the encoder read."""
        if cross and cache is not None and self.layer in cache.memory:
            return cache.memory[self.layer]
        k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.k_proj, self.v_proj))
        k = self.k_norm(k)
        k, v = (k if rotation is None else rotate(k, rotation)).transpose(1, 2), v.transpose(1, 2)
        if cache is None:
            return k, v
        if not cross:
            return cache.append(self.layer, k, v)
        cache.memory[self.layer] = k, v
        return k, v


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool, scale: float, dropout: float) -> Tensor:
    """Attention as three products with the scores held, (B, H, T, D) each.

    The CPU's flash kernel runs its backward pass in bf16 at a fifth of this speed for 256 tokens (43 against 8 ms).
    """
    (B, H, T, D), S = q.shape, k.shape[2]
    keys = k.flatten(0, 1).transpose(1, 2)
    if causal:
        mask = torch.full((T, S), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    elif mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, float("-inf"))
    if mask is None:
        scores = torch.bmm(q.flatten(0, 1) * scale, keys)
    elif mask.ndim == 2:
        scores = torch.baddbmm(mask.expand(B * H, T, S), q.flatten(0, 1), keys, alpha=scale)
    else:
        scores = torch.baddbmm(mask.expand(B, H, T, S).flatten(0, 1), q.flatten(0, 1), keys, alpha=scale)
    weights = torch.softmax(scores, dim=-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return (weights @ v.flatten(0, 1)).view(B, H, T, D)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs (i, i + D/2) of (B, T, H, D) by their position's angle (the half-split layout of Llama and Qwen)."""
    cos, sin = (t[:, : x.shape[2]] for t in rotation)  # there may be fewer key heads than query heads
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class FeedForward(nn.Module):
    """Two matrices with an activation between them; a gated activation takes a third (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[GATED.get(config.activation, config.activation)]
        if config.activation in GATED:
            self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.bias)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=config.bias)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=config.bias)
        self.gated = config.activation in GATED

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.activation(self.up_proj(x)))
