"""Which tokens step s trains on: sample k is a pure function of (seed, k), so the position of a run is one number.

    samples = Samples(split, window=257, seed=1)
    windows = samples.windows(step_samples(step=7, batch_size=32))     # (32, 257) int64

Each epoch cuts the split into contiguous windows, from an offset of its own, and visits them in an order of its own: a
keyed bijection, computed per sample, with no table in memory. Nothing is read ahead and nothing has to be replayed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np

from llmpipe.data.tokens import TokenSplit
from llmpipe.errors import InputError

ROUNDS = 6
_MASK = 2**64 - 1


def step_samples(*, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """Return the numbers of the samples that one process has of step `step`. This is where world size enters training."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)


class Samples:
    """Windows of a split in a shuffled order without end."""

    def __init__(self, split: TokenSplit, *, window: int, seed: int) -> None:
        self.split, self.window, self.seed = split, window, seed
        self.stride = window - 1  # neighbours share a token: the last target of one is the first input of the next
        self.per_epoch = (len(split) - window) // self.stride  # one window's worth is left for the epoch's offset
        if self.per_epoch < 1:
            raise InputError(f"{split.path}: {len(split):,} tokens in train are fewer than two windows of {window}", hint="set a smaller seq_len, or tokenize more text")

    def start(self, k: int) -> int:
        """Find where sample k begins in the split."""
        epoch, place = divmod(k, self.per_epoch)
        keys = _keys(self.seed, epoch)
        return keys[ROUNDS] % (self.stride + 1) + self.stride * permute(place, self.per_epoch, keys)

    def windows(self, numbers: Iterable[int]) -> np.ndarray:
        return np.stack([self.split.window(self.start(k), self.window) for k in numbers])


def permute(place: int, size: int, keys: tuple[int, ...]) -> int:
    """Map [0, size) onto itself one to one: a Feistel network on the next even number of bits, walked until it lands inside."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for key in keys[:ROUNDS]:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        place = (left << half) | right
        if place < size:
            return place


def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"samples:{seed}:{epoch}".encode(), digest_size=8 * (ROUNDS + 1)).digest()
    return struct.unpack(f"<{ROUNDS + 1}Q", digest)


def _mix(x: int) -> int:
    """Scramble 64 bits (the finaliser of SplitMix64)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
