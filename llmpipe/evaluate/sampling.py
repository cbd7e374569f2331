"""Sample from a language model token by token, with a cache of keys and values.

    sampler = Sampler.load(directory)
    for made in sampler.continue_text("import asyncio", config): print(made.text)

The prompt passes through the model once for all its samples; then one token a step. When the model's length is
full, the older half of the context is dropped and the newer half read again. An encoder-decoder reads the prompt in its
encoder, and what its decoder writes is the answer to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from llmpipe.errors import InputError, UsageError
from llmpipe.models.heads import class_labels
from llmpipe.models.hf import load_model
from llmpipe.models.transformer import KVCache, Transformer
from llmpipe.tokenizer.directory import load_tokenizer, special_ids

Finish = Literal["stop", "length"]


class Settings(Protocol):
    """What of generate's Config is used here."""

    temperature: float
    top_k: int | None
    top_p: float
    max_new_tokens: int
    num_samples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to one sample: no text while a character is incomplete."""

    text: str
    ended: Finish | None
    counted: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    text: str
    num_tokens: int
    finish: Finish
    """`stop`: the model ended the document; `length`: `max_new_tokens` were reached."""


class Sampler:
    def __init__(self, model: Transformer, tokenizer: object, *, start: int | None, stop: int | None) -> None:
        self.model, self.tokenizer, self.start, self.stop = model, tokenizer, start, stop
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, directory: Path, *, device: str = "cpu") -> Sampler:
        if class_labels(directory) is not None:
            raise UsageError(f"{directory} is a classifier, which writes no text", hint="generate with the model that it was finetuned from")
        model, config = load_model(directory, device=device)
        if config.stack == "encoder":
            raise UsageError(f"{directory} is an encoder, which fills in masks and writes no text", hint="generate with a decoder or an encoder-decoder")
        ids = special_ids(directory)
        start = ids.get("bos_token_id" if config.stack == "decoder" else "pad_token_id")
        return cls(model, load_tokenizer(directory), start=start, stop=ids.get("eos_token_id"))

    def continue_text(self, prompt: str, settings: Settings, *, number: int = 0) -> list[Continuation]:
        """Return `num_samples` continuations. Bytes at the end that make no whole character are left out."""
        texts, counts = [[] for _ in range(settings.num_samples)], [0] * settings.num_samples
        finish: list[Finish] = ["length"] * settings.num_samples
        for pieces in self.stream(prompt, settings, number=number):
            for i, piece in enumerate(pieces):
                texts[i].append(piece.text)
                counts[i] += piece.counted
                finish[i] = piece.ended or finish[i]
        return [Continuation("".join(t), n, f) for t, n, f in zip(texts, counts, finish, strict=True)]

    def stream(self, prompt: str, settings: Settings, *, number: int = 0) -> Iterator[list[Piece]]:
        """Yield for each step one piece for each sample, until all have ended."""
        from tokenizers.decoders import DecodeStream

        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not ids:  # the start of a document: what stands there in training is the token before it
            if self.start is None:
                raise InputError("an empty prompt needs a begin or end token, and the tokenizer names none")
            ids = [self.start]
        decoders = [DecodeStream(skip_special_tokens=True) for _ in range(settings.num_samples)]
        ended: list[Finish | None] = [None] * settings.num_samples
        for step, chosen in enumerate(self.tokens(ids, settings, number=number), 1):
            pieces = []
            for i, token in enumerate(chosen.tolist()):
                if ended[i] is not None:
                    pieces.append(Piece("", None, False))
                elif token == self.stop:
                    ended[i] = "stop"
                    pieces.append(Piece("", "stop", False))
                else:
                    ended[i] = "length" if step == settings.max_new_tokens else None
                    pieces.append(Piece(decoders[i].step(self.tokenizer, token) or "", ended[i], True))
            yield pieces
            if all(ended):
                return

    @torch.no_grad()
    def tokens(self, prompt: list[int], settings: Settings, *, number: int = 0) -> Iterator[Tensor]:
        """Yield the next token of every sample, (N,), `max_new_tokens` times; it is for the caller to stop."""
        config, n = self.model.config, settings.num_samples
        generators = [sample_generator(settings.seed, number, i) for i in range(n)]
        read, prompt = self._reader(prompt)
        context = torch.tensor([prompt[-config.max_seq_len :]], device=self.device).expand(n, -1)
        cache: KVCache | None = None
        new = context
        for _ in range(settings.max_new_tokens):
            if cache is None or cache.length == cache.max_len:
                if cache is not None or context.shape[1] == config.max_seq_len:
                    context = context[:, -max(1, config.max_seq_len // 2) :]
                length = min(config.max_seq_len, context.shape[1] + settings.max_new_tokens)
                shared = cache is None  # all samples have the same prompt: read it once
                cache = KVCache(config, batch_size=1 if shared else n, max_len=length, device=self.device)
                hidden = read(context[:1] if shared else context, cache)[:, -1]
                if shared and n > 1:
                    cache.select(torch.zeros(n, dtype=torch.long, device=self.device))
                    hidden = hidden.expand(n, -1)
            else:
                hidden = read(new, cache)[:, -1]
            chosen = choose(self.model.logits(hidden), settings, generators)
            new = chosen[:, None]
            context = torch.cat([context, new], 1)
            yield chosen

    def _reader(self, prompt: list[int]) -> tuple[Callable[[Tensor, KVCache], Tensor], list[int]]:
        """Return the pass from new tokens and a cache to hidden states, and the tokens that it starts with."""
        if self.model.config.stack == "decoder":
            return lambda ids, cache: self.model.hidden(ids, cache=cache), prompt
        if self.start is None or self.stop is None:
            raise InputError("an encoder-decoder needs a padding token to start from and an end token, and the tokenizer does not name both")
        source = torch.tensor([[*prompt[-(self.model.config.max_seq_len - 1) :], self.stop]], device=self.device)
        memory = self.model.encode(source)

        def read(ids: Tensor, cache: KVCache) -> Tensor:
            return self.model.hidden(source, decoder_ids=ids, memory=memory.expand(len(ids), -1, -1), cache=cache)

        return read, [self.start]


def choose(logits: Tensor, settings: Settings, generators: list[torch.Generator]) -> Tensor:
    """Pick a token of each row of logits (N, V): (N,)."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    kept = min(settings.top_k or logits.shape[-1], logits.shape[-1])
    if kept < logits.shape[-1] or settings.top_p < 1:
        logits, ids = logits.topk(kept, dim=-1)  # sorted, likeliest first
    else:
        ids = None
    probabilities = torch.softmax(logits.float() / settings.temperature, -1)
    if settings.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= settings.top_p, 0.0)
    # the largest p / Exp(1) is a draw from p, and each sample's noise is its own however many there are
    noise = torch.stack([torch.empty(probabilities.shape[-1]).exponential_(generator=g) for g in generators]).to(probabilities.device)
    place = (probabilities / noise).argmax(-1)
    return place if ids is None else ids.gather(-1, place[:, None])[:, 0]


def sample_generator(seed: int, prompt: int, sample: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{prompt}:{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
