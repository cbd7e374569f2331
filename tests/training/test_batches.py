"""Sample k is a pure function of (seed, k): every window once an epoch, the same on any number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmpipe.errors import InputError
from llmpipe.training.batches import Samples, permute, step_samples


class Counting:
    """A split whose token at place i is i."""

    path = "tokens"

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def window(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start and start + length <= self.size
        return np.arange(start, start + length)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_permutation_visits_each_place_once(size: int) -> None:
    keys = tuple(range(11, 18))
    assert sorted(permute(i, size, keys) for i in range(size)) == list(range(size))


def test_an_epoch_has_every_window_once_and_each_epoch_its_own_order() -> None:
    samples = Samples(Counting(1000), window=17, seed=3)
    starts = [[samples.start(k) for k in range(e * samples.per_epoch, (e + 1) * samples.per_epoch)] for e in range(4)]
    for epoch in starts:
        assert sorted(np.diff(sorted(epoch)).tolist()) == [16] * (samples.per_epoch - 1)
        assert max(epoch) + 17 <= 1000
    assert len({tuple(e) for e in starts}) == 4 and len({min(e) for e in starts}) > 1
    places = [sorted(starts[0]).index(s) for s in starts[0]]
    assert places != sorted(places)
    assert Samples(Counting(1000), window=17, seed=4).start(0) != samples.start(0)
    counted = Counter(t for s in starts[0] for t in range(s, s + 16))
    assert set(counted.values()) == {1} and len(counted) > 1000 - 2 * 17


def test_processes_share_a_step_without_overlap() -> None:
    whole = list(step_samples(step=5, batch_size=12))
    for size in (1, 2, 3, 4):
        assert [k for r in range(size) for k in step_samples(step=5, batch_size=12, rank=r, world_size=size)] == whole
    assert step_samples(step=6, batch_size=12).start == whole[-1] + 1


def test_too_few_tokens_is_said() -> None:
    with pytest.raises(InputError, match="30 tokens in train are fewer than two windows of 17"):
        Samples(Counting(30), window=17, seed=0)
