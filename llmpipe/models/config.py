"""What a Transformer is: every option that the families differ in, and how many parameters it has. No torch here.

    config = ModelConfig(vocab_size=4096, num_layers=4, dim=256, num_heads=4)       # Qwen3's architecture
    count_parameters(config).all

The defaults are Qwen3's; models/families.py says which options make GPT-2, BERT or T5 of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}
"""Activations that multiply a gate with a second product (Shazeer 2020), and the function on the gate."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model; all that is needed to build it."""

    stack: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    """decoder: each token sees those before it. encoder: all of them. encoder-decoder: a decoder that also sees an encoder's output."""
    vocab_size: int
    num_layers: int
    """Blocks; of an encoder-decoder, those of the encoder."""
    num_decoder_layers: int = 0
    """Blocks of an encoder-decoder's decoder; 0: as many as num_layers."""
    dim: int
    num_heads: int
    num_kv_heads: int = 0
    """Key and value heads, each shared by num_heads / num_kv_heads query heads; 0: as many as num_heads."""
    head_dim: int = 0
    """0: dim / num_heads."""
    ffn_dim: int = 0
    """Width inside the feed-forward network; 0: 4 x dim, and with a gate 8/3 of dim in multiples of 64, which costs the same."""
    activation: Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu"] = "swiglu"
    norm: Literal["rms", "layer"] = "rms"
    norm_place: Literal["pre", "post"] = "pre"
    """pre: the stream is normed on its way into attention and network, and once at the end. post: after each of them is added (BERT)."""
    norm_eps: float = 1e-6
    bias: bool = False
    """On linear layers and layer norms."""
    first_norm: bool = True
    """Whether the first block norms what goes into its attention; ModernBERT, whose embeddings are normed, does not."""
    positions: Literal["rope", "learned", "relative"] = "rope"
    """rope: rotary, half-split pairs. learned: a table of vectors added to the embeddings. relative: a bias on the scores by distance (T5)."""
    rope_theta: float = 10_000.0
    position_offset: int = 0
    """learned: rows of the table in front of the first position (RoBERTa: 2)."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    local_window: int = 0
    """Width of the window that local blocks see, half of it on each side; 0: every block sees all (ModernBERT: 128)."""
    global_every: int = 1
    """With local_window: blocks 0, n, 2n, … see all."""
    local_rope_theta: float = 10_000.0
    """Rotary base of the local blocks."""
    qk_norm: bool = True
    scale_attention: bool = True
    """Scores divided by sqrt(head_dim); T5 folds that into its weights."""
    token_types: int = 0
    """Rows of the embedding of token types; all tokens are of type 0 unless told otherwise (BERT: 2)."""
    embedding_norm: bool = False
    head_transform: bool = False
    """BERT's head: dense, gelu and norm before the output layer, which has a bias."""
    tie_embeddings: bool = True
    scale_output: bool = False
    """Hidden states divided by sqrt(dim) before the head: the first T5, whose head is tied."""
    max_seq_len: int = 1024
    """Longest sequence that the positions are made for; more is an error. Relative positions have no limit of their own."""
    dropout: float = 0.0
    """On embeddings and on what each attention and network adds, in training."""
    attention_dropout: float = 0.0
    """On attention weights, in training."""

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # frozen: this is where derived defaults are filled in
        set_(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if not self.head_dim and self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        set_(self, "head_dim", self.head_dim or self.dim // self.num_heads)
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs")
        set_(self, "ffn_dim", self.ffn_dim or (-(-8 * self.dim // 3 // 64) * 64 if self.activation in GATED else 4 * self.dim))
        if self.stack == "encoder-decoder":
            set_(self, "num_decoder_layers", self.num_decoder_layers or self.num_layers)
            if self.norm_place == "post" or self.positions == "learned" or self.head_transform:
                raise ValueError("an encoder-decoder has pre-norm blocks, no table of positions and a plain head here")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1)")

    @property
    def num_generating_layers(self) -> int:
        """Blocks that a cache of keys and values serves."""
        return self.num_decoder_layers or self.num_layers

    def is_local(self, layer: int) -> bool:
        return self.local_window > 0 and layer % self.global_every != 0


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of parameters by where they work."""

    embedding: int
    """Tables and, untied, the head's matrix."""
    head: int
    """What stands before the output layer, and its bias."""
    encoder: int
    """Blocks of an encoder-decoder's encoder."""
    blocks: int
    """Blocks of the only stack, or of the decoder."""

    @property
    def all(self) -> int:
        return self.embedding + self.head + self.encoder + self.blocks


def count_parameters(config: ModelConfig) -> Parameters:
    """Count by arithmetic what building the model would show."""
    c, b = config, int(config.bias)
    norm = c.dim * (1 + (b if c.norm == "layer" else 0))
    wide, narrow = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    attention = 2 * c.dim * (wide + narrow) + b * (wide + 2 * narrow + c.dim) + (2 * c.head_dim if c.qk_norm else 0)
    ffn = (3 if c.activation in GATED else 2) * c.dim * c.ffn_dim + b * (c.dim + (2 if c.activation in GATED else 1) * c.ffn_dim)
    last = norm if c.norm_place == "pre" else 0
    relative = c.relative_buckets * c.num_heads if c.positions == "relative" else 0
    block = attention + ffn + 2 * norm
    tables = c.vocab_size * (1 if c.tie_embeddings else 2) + (c.max_seq_len + c.position_offset if c.positions == "learned" else 0) + c.token_types
    head = c.dim * c.dim + b * c.dim + norm + c.vocab_size if c.head_transform else 0
    stack = c.num_layers * block + last + relative - (0 if c.first_norm else norm)
    if c.stack != "encoder-decoder":
        return Parameters(embedding=tables * c.dim + (norm if c.embedding_norm else 0), head=head, encoder=0, blocks=stack)
    decoder = c.num_decoder_layers * (block + attention + norm) + last + relative
    return Parameters(embedding=tables * c.dim + (norm if c.embedding_norm else 0), head=head, encoder=stack, blocks=decoder)
