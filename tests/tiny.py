"""A tiny random model with a real tokenizer: enough for every rule that doesn't need a good model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from llmpipe.models.hf import save_model
from llmpipe.models.transformer import ModelConfig, Transformer
from llmpipe.tokenizer.train import train_bpe, write_tokenizer
from tests.material import chinese, english

TEXTS = ["床前明月光，疑是地上霜。", "The quick brown fox 😀 jumps.", "混排 mixed text with 数字 123\n\n和 emoji 👩‍👩‍👧‍👦 done"]


@cache
def _tokenizer() -> Any:
    return train_bpe([*(english(i) for i in range(8)), *(chinese(i) for i in range(8))], vocab_size=400, max_run_chars=64, num_sentinels=2)


def make_model(directory: Path, *, seed: int = 0, max_seq_len: int = 64, **shape: Any) -> Path:
    """Write a Hugging Face directory of a random model: two layers, 32 wide, grouped queries."""
    write_tokenizer(directory, _tokenizer())
    config = ModelConfig(**{"vocab_size": _tokenizer().get_vocab_size(), "num_layers": 2, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": max_seq_len, **shape})
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # not `initialize`: its zero projections would make every block the identity
            parameter.normal_(0.0, 0.3, generator=generator)
    save_model(directory, model, tokenizer=directory)
    return directory
