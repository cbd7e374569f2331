"""Which tokens step s trains on: sample k is a pure function of (seed, k), so the position of a run is one number.

    samples = make_samples(split, None, window=257, seed=1, num_samples=12_800)
    windows = samples.windows(step_samples(step=7, batch_size=32))     # (32, 257) int64

Each epoch cuts the split into contiguous windows, from an offset of its own, and visits them in an order of its own: a
keyed bijection, computed per sample, with no table in memory. Nothing is read ahead and nothing has to be replayed. Where
sources are mixed (mixture.py), each has epochs of its own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from llmpipe.data.tokens import TokenSplit
from llmpipe.errors import InputError
from llmpipe.log import log
from llmpipe.training.mixture import deal, dealt, mixture_quotas
from llmpipe.training.settings import MixtureConfig

ROUNDS = 6


def step_samples(*, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """Return the numbers of the samples that one process has of step `step`. This is where world size enters training."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)


def make_samples(split: TokenSplit, mixture: MixtureConfig | None, *, window: int, seed: int, num_samples: int, overlap: int = 1) -> Samples | MixedSamples:
    """Take the split as one stream, or mix its sources; `num_samples`, the run's length, is what caps on epochs are measured against.

    Sources of fewer than two windows cannot be sampled: an error where they have a weight, else they are left out.
    """
    if mixture is None:
        return Samples(split, window=window, seed=seed, overlap=overlap)
    parts = split.by(mixture.by)
    short = [name for name, part in parts.items() if len(part) < 2 * window and not mixture.weights.get(name)]
    if kept := {name: part for name, part in parts.items() if name not in short}:
        if unsaid := [name for name in short if name not in mixture.weights]:
            log.warning("mixture: left out, since they have fewer than two windows of %d tokens: %s", window, ", ".join(unsaid))
        parts = kept
    sources = {name: Samples(part, window=window, seed=seed, overlap=overlap, name=name) for name, part in parts.items()}
    sizes = {name: s.per_epoch * s.stride for name, s in sources.items()}
    settings = mixture if not mixture.weights else MixtureConfig(by=mixture.by, weights={n: w for n, w in mixture.weights.items() if n not in short}, max_epochs=mixture.max_epochs)
    quotas = mixture_quotas(sizes, settings, num_tokens=num_samples * (window - overlap))
    return MixedSamples(sources, quotas, seed=seed)


class Samples:
    """Windows of a split in a shuffled order without end."""

    def __init__(self, split: TokenSplit, *, window: int, seed: int, overlap: int = 1, name: str = "") -> None:
        """Neighbouring windows share `overlap` tokens: 1 where the last target of one is the first input of the next."""
        self.split, self.window, self.seed, self.name = split, window, seed, name
        self.stride = window - overlap
        self.per_epoch = (len(split) - window) // self.stride  # one window's worth is left for the epoch's offset
        if self.per_epoch < 1:
            where = f"{split.path}: {name}: " if name else f"{split.path}: "
            raise InputError(f"{where}{len(split):,} tokens in train are fewer than two windows of {window}", hint="set a smaller seq_len, or tokenize more text")

    def start(self, k: int) -> int:
        """Find where sample k begins in the split."""
        return int(self.starts([k])[0])

    def starts(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Find where samples begin in the split (int64)."""
        epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), self.per_epoch)
        out = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            keys, mine = _keys(self.seed, epoch, self.name), epochs == epoch
            out[mine] = keys[ROUNDS] % self.window + self.stride * permute(places[mine], self.per_epoch, keys)
        return out

    def windows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.stack([self.split.window(start, self.window) for start in self.starts(numbers).tolist()])

    def locate(self, k: int) -> tuple[Samples, int]:
        """Say whose sample k is, and where it begins in that one's split."""
        return self, self.start(k)

    def counts(self, num_samples: int) -> dict[str, int]:
        """How many of the first samples each source has; here there is none to tell apart."""
        return {}


class MixedSamples:
    """Windows of several sources in fixed shares, each source in a shuffled order of its own without end."""

    def __init__(self, sources: Mapping[str, Samples], quotas: Mapping[str, int], *, seed: int) -> None:
        self.names, self.sources, self.seed = list(sources), list(sources.values()), seed
        self.quotas = np.array([quotas[name] for name in self.names], dtype=np.int64)
        self.stride, self.window = self.sources[0].stride, self.sources[0].window

    def windows(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        which, index = deal(np.asarray(numbers, dtype=np.int64), self.quotas, seed=self.seed)
        out = np.empty((len(which), self.window), dtype=np.int64)
        for s in np.unique(which).tolist():
            out[which == s] = self.sources[s].windows(index[which == s])
        return out

    def locate(self, k: int) -> tuple[Samples, int]:
        """Say whose sample k is, and where it begins in that one's split."""
        (which,), (index,) = deal(np.array([k], dtype=np.int64), self.quotas, seed=self.seed)
        return self.sources[which].locate(int(index))

    def counts(self, num_samples: int) -> dict[str, int]:
        """How many of the first samples each source has."""
        return dict(zip(self.names, dealt(num_samples, self.quotas, seed=self.seed).tolist(), strict=True))

    def epochs(self, num_samples: int) -> dict[str, float]:
        """How often the first samples go through each source."""
        return {name: n / source.per_epoch for (name, n), source in zip(self.counts(num_samples).items(), self.sources, strict=True)}


def permute(places: np.ndarray | int, size: int, keys: tuple[int, ...]) -> np.ndarray:
    """Map [0, size) onto itself one to one: a Feistel network on the next even number of bits, walked until it lands inside."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = np.atleast_1d(np.asarray(places)).astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> half, out[todo] & mask
        for key in keys[:ROUNDS]:
            left, right = right, left ^ (_mix(right ^ np.uint64(key)) & mask)
        out[todo] = (left << half) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


def _keys(seed: int, epoch: int, name: str = "") -> tuple[int, ...]:
    text = f"samples:{seed}:{epoch}" + (f":{name}" if name else "")
    return struct.unpack(f"<{ROUNDS + 1}Q", hashlib.blake2b(text.encode(), digest_size=8 * (ROUNDS + 1)).digest())


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
