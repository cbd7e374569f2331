"""What a model is trained to do: how windows of tokens become a batch, and the loss on it.

    objective = make_objective("mlm", noise=NoiseConfig(), seed=1, tokenizer=tokens / "tokenizer")
    batch = objective.batch(windows, numbers)    # windows: (B, objective.window(seq_len)) of token ids, samples `numbers`
    summed = objective.loss(model, batch)        # divided by batch.count, over all micro-batches of a step, by the loop

What is masked in sample k is a pure function of (seed, k), drawn by hashing and not from a generator with a state: it is
the same after a resume, on any number of processes and in any micro-batch, and all rows of a batch are drawn at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from llmpipe.errors import InputError
from llmpipe.models.linear_loss import IGNORE
from llmpipe.tokenizer.directory import Roles, token_roles
from llmpipe.training.noise import MLM_EVAL_RATE, MLM_RATE, SPAN_RATE, span_counts, span_window
from llmpipe.training.settings import NoiseConfig

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays as it is (Devlin et al. 2018)


@dataclass(frozen=True, slots=True)
class Batch:
    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T) or (B, M), IGNORE where there is none
    places: Tensor | None = None  # (B, M): which positions the targets belong to; None: all
    decoder_ids: Tensor | None = None  # (B, T): what an encoder-decoder's decoder reads, while `ids` are the encoder's

    @property
    def count(self) -> int:
        return int((self.targets != IGNORE).sum())

    def to(self, device: str) -> Batch:
        if device == "cpu":
            return self
        return Batch(*(t if t is None else t.pin_memory().to(device, non_blocking=True) for t in (self.ids, self.targets, self.places, self.decoder_ids)))


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sum the cross-entropy over the batch's targets."""
    return model(batch.ids, batch.targets, places=batch.places, decoder_ids=batch.decoder_ids)


# --- next token -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CausalLM:
    """Predict each token from those before it (for decoders)."""

    stack: ClassVar[str] = "decoder"
    overlap: ClassVar[int] = 1
    """Tokens that neighbouring windows share: the last target of one is the first input of the next."""

    def window(self, seq_len: int) -> int:
        return seq_len + 1

    def batch(self, windows: np.ndarray, numbers: Sequence[int] = ()) -> Batch:
        tokens = torch.from_numpy(windows)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return batch_loss(model, batch)


# --- masked tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class MaskedLM:
    """Predict hidden tokens from both sides (for encoders): of 30 %, four fifths masked, a tenth replaced, a tenth as they are."""

    stack: ClassVar[str] = "encoder"
    overlap: ClassVar[int] = 0
    seed: int
    rate: float
    mask: int
    cls: int
    sep: int
    special: np.ndarray
    """(V,) bool: ids that are neither masked nor drawn."""
    normal: np.ndarray
    """The others."""

    @classmethod
    def make(cls, *, noise: NoiseConfig, seed: int, roles: Roles) -> MaskedLM:
        roles.need("mask", "cls", "sep", why="objective mlm masks texts that stand between those of cls and sep")
        assert roles.mask is not None and roles.cls is not None and roles.sep is not None
        special = np.zeros(roles.vocab_size, dtype=bool)
        special[list(roles.all)] = True
        return cls(seed=seed, rate=MLM_RATE if noise.rate is None else noise.rate, mask=roles.mask, cls=roles.cls, sep=roles.sep, special=special, normal=np.flatnonzero(~special))

    def window(self, seq_len: int) -> int:
        return seq_len - 2

    def batch(self, windows: np.ndarray, numbers: Sequence[int]) -> Batch:
        """Hide the same number of tokens in every row: shapes never change, and the head costs what it must."""
        rows, width = windows.shape
        count = max(1, round(self.rate * width))
        keys = draws(self.seed, "mlm.place", numbers, width)
        keys[self.special[windows]] = np.iinfo(np.uint64).max  # chosen last, and then not counted
        places = np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1)  # (B, M)
        chosen = np.take_along_axis(windows, places, 1)
        fate = draws(self.seed, "mlm.fate", numbers, count) / 2.0**64
        other = self.normal[draws(self.seed, "mlm.token", numbers, count) % np.uint64(len(self.normal))]
        shown = np.where(fate < MASKED, self.mask, np.where(fate < MASKED + RANDOM, other, chosen))
        never = self.special[chosen]
        ids = np.empty((rows, width + 2), dtype=np.int64)
        ids[:, 0], ids[:, -1], ids[:, 1:-1] = self.cls, self.sep, windows
        np.put_along_axis(ids, places + 1, np.where(never, chosen, shown), 1)
        return Batch(torch.from_numpy(ids), torch.from_numpy(np.where(never, IGNORE, chosen)), torch.from_numpy(places + 1))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return batch_loss(model, batch)

    def for_evaluation(self) -> MaskedLM:
        """The same question in every run, so that runs compare: 15 %, whatever was trained with, by a seed of its own."""
        return replace(self, rate=MLM_EVAL_RATE, seed=0)


# --- removed spans --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class SpanCorruption:
    """Write down the spans that were cut out of a text (for encoder-decoders): 15 % of its tokens, about 3 each (T5)."""

    stack: ClassVar[str] = "encoder-decoder"
    overlap: ClassVar[int] = 0
    seed: int
    rate: float
    mean_span: float
    start: int
    """What the decoder reads first."""
    end: int
    sentinels: np.ndarray
    """Ids that stand for the first removed span, the second, …"""

    @classmethod
    def make(cls, *, noise: NoiseConfig, seed: int, roles: Roles) -> SpanCorruption:
        roles.need("pad", "eos", "sentinels", why="objective span marks each removed span and ends input and target")
        assert roles.pad is not None and roles.eos is not None
        return cls(seed=seed, rate=SPAN_RATE if noise.rate is None else noise.rate, mean_span=noise.mean_span, start=roles.pad, end=roles.eos, sentinels=np.array(roles.sentinels))

    def window(self, seq_len: int) -> int:
        """The longest text whose remains fill an input of `seq_len`: each span leaves one sentinel, and the end follows."""
        length = span_window(seq_len, self.rate, self.mean_span)
        spans = span_counts(length, self.rate, self.mean_span)[1]
        if spans > len(self.sentinels):
            raise InputError(
                f"seq_len {seq_len} with noise.rate {self.rate:g} and noise.mean_span {self.mean_span:g} removes {spans} spans, the tokenizer reserves {len(self.sentinels)} sentinels",
                hint=f"a smaller seq_len, a larger noise.mean_span, or llmpipe tokenizer --set num_sentinels={spans}",
            )
        return length

    def batch(self, windows: np.ndarray, numbers: Sequence[int]) -> Batch:
        rows, length = windows.shape
        noise, spans = span_counts(length, self.rate, self.mean_span)
        kept = segment_lengths(length - noise, spans, draws(self.seed, "span.kept", numbers, max(1, length - noise - 1)))
        cut = segment_lengths(noise, spans, draws(self.seed, "span.cut", numbers, max(1, noise - 1)))
        lengths = np.stack([kept, cut], axis=2).reshape(rows, 2 * spans)  # kept and cut in turn
        first = np.zeros((rows, length), dtype=bool)
        np.put_along_axis(first, np.cumsum(lengths, axis=1) - lengths, True, 1)
        segment = np.cumsum(first, axis=1) - 1
        removed = segment % 2 == 1
        marked = np.where(first, self.sentinels[segment // 2], windows)  # each segment begins with its sentinel …
        source = self._ended(np.where(removed, marked, windows), ~removed | first)  # … here those that were cut,
        target = self._ended(np.where(removed, windows, marked), removed | first)  # there those that were kept
        decoder = np.concatenate([np.full((rows, 1), self.start), target[:, :-1]], axis=1)
        return Batch(torch.from_numpy(source), torch.from_numpy(target), None, torch.from_numpy(decoder))

    def _ended(self, tokens: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Keep the same number of tokens of each row, and put the end behind them."""
        rows = tokens[keep].reshape(len(tokens), -1)
        return np.concatenate([rows, np.full((len(rows), 1), self.end)], axis=1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return batch_loss(model, batch)

    def for_evaluation(self) -> SpanCorruption:
        """The same spans in every run, so that runs compare."""
        return replace(self, seed=0)


def segment_lengths(total: int, parts: int, keys: np.ndarray) -> np.ndarray:
    """Cut `total` into `parts` lengths of at least 1, uniformly: (B, parts). `keys` (B, total - 1) order the places to cut at."""
    rows = len(keys)
    if parts == 1:
        return np.full((rows, 1), total)
    cuts = np.sort(np.argpartition(keys, parts - 2, axis=1)[:, : parts - 1], axis=1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=total)


# --- the table, and where randomness comes from ---------------------------------------------------------------------

Objective = CausalLM | MaskedLM | SpanCorruption

OBJECTIVES: dict[str, type[CausalLM] | type[MaskedLM] | type[SpanCorruption]] = {"clm": CausalLM, "mlm": MaskedLM, "span": SpanCorruption}
"""A further objective is a class with `window`, `batch` and `loss`: XLNet's would add an order of prediction to its batch."""

DEFAULTS = {objective.stack: name for name, objective in OBJECTIVES.items()}
"""What each kind of stack is trained for unless told otherwise."""


def make_objective(name: str, *, noise: NoiseConfig, seed: int, tokenizer: Path) -> Objective:
    """Make an objective for a tokenizer; raises `InputError` if that lacks a token which it needs."""
    kind = OBJECTIVES[name]
    return CausalLM() if kind is CausalLM else kind.make(noise=noise, seed=seed, roles=token_roles(tokenizer))  # type: ignore[union-attr]


def draws(seed: int, salt: str, numbers: Sequence[int], width: int) -> np.ndarray:
    """Draw 64 random bits for each place of each sample, (B, width): SplitMix64, whose state is (seed, salt, sample, place)."""
    key = np.uint64(int.from_bytes(hashlib.blake2b(f"{salt}:{seed}".encode(), digest_size=8).digest(), "little"))
    rows = _mix(_mix(np.asarray(numbers, dtype=np.uint64) ^ key) + key)
    return _mix(rows[:, None] + np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
