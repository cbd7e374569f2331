"""Mixtures: shares in every stretch, each source's samples in their order and none twice, caps kept, the same however a run is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmpipe.errors import InputError, UsageError
from llmpipe.training.batches import MixedSamples, Samples, make_samples
from llmpipe.training.mixture import DECK, deal, dealt, mixture_quotas
from llmpipe.training.settings import MixtureConfig


class Numbers:
    """A split whose tokens are `first`, `first` + 1, …; the parts are given."""

    path = Path("tokens")

    def __init__(self, size: int, *, first: int = 0, parts: dict[str, Numbers] | None = None) -> None:
        self.size, self.first, self.parts = size, first, parts or {}

    def __len__(self) -> int:
        return self.size

    def by(self, what: str) -> dict[str, Numbers]:
        return self.parts

    def window(self, start: int, length: int) -> np.ndarray:
        assert 0 <= start and start + length <= self.size
        return np.arange(self.first + start, self.first + start + length)


EN_ZH = Numbers(0, parts={"en": Numbers(10_000), "zh": Numbers(2_000, first=1_000_000)})


@pytest.mark.parametrize("quotas", [[DECK], [DECK // 2, DECK // 2], [1, DECK - 1], [3, 0, DECK // 3, DECK - 3 - DECK // 3], [700_000, 300_000, DECK - 1_000_000]])
def test_each_source_gives_its_samples_in_order_and_none_twice(quotas: list[int]) -> None:
    numbers = np.arange(6_000)
    source, index = deal(numbers, np.array(quotas), seed=7)
    for s in range(len(quotas)):
        assert index[source == s].tolist() == list(range((source == s).sum()))
    for n in (0, 1, 777, 6_000):
        assert dealt(n, np.array(quotas), seed=7).tolist() == np.bincount(source[:n], minlength=len(quotas)).tolist()
    # the next deck goes on where the first ended
    later, after = deal(numbers + DECK - 3_000, np.array(quotas), seed=7)
    before = dealt(DECK - 3_000, np.array(quotas), seed=7)
    for s in range(len(quotas)):
        assert after[later == s].tolist() == list(range(before[s], before[s] + (later == s).sum()))
    assert dealt(DECK, np.array(quotas), seed=7).tolist() == quotas


def test_any_stretch_has_the_shares_to_within_a_few_samples() -> None:
    shares = np.array([0.02, 0.28, 0.7])
    quotas = np.round(shares * DECK).astype(int)
    source, _ = deal(np.arange(20_000), quotas, seed=3)
    for start, length in ((0, 100), (5, 1_000), (7_777, 3_000), (0, 20_000)):
        counts = np.bincount(source[start : start + length], minlength=3)
        assert np.abs(counts - shares * length).max() < 6
    assert source.tolist() != deal(np.arange(20_000), quotas, seed=4)[0].tolist()


def test_weights_temperature_and_caps_set_the_shares() -> None:
    sizes = {"books": 1_000, "web_en": 8_000, "web_zh": 1_000}

    def shares(num_tokens: int = 10_000, **settings: object) -> dict[str, float]:
        quotas = mixture_quotas(sizes, MixtureConfig(**settings), num_tokens=num_tokens)
        assert sum(quotas.values()) == DECK
        return {name: round(n / DECK, 4) for name, n in quotas.items()}

    assert shares() == {"books": 0.1, "web_en": 0.8, "web_zh": 0.1}
    assert shares(temperature=3.0) == {"books": 0.25, "web_en": 0.5, "web_zh": 0.25}
    assert shares(weights={"books": 3, "web_en": 1, "web_zh": 0}) == {"books": 0.75, "web_en": 0.25, "web_zh": 0.0}
    # 4 epochs of 1,000 tokens are a fifth of 20,000; what is cut off goes to the others, in proportion
    assert shares(20_000, weights={"books": 6, "web_en": 3, "web_zh": 1}, max_epochs={"books": 4}) == {"books": 0.2, "web_en": 0.6, "web_zh": 0.2}
    # which may bring another to its cap
    assert shares(20_000, weights={"books": 6, "web_en": 3, "web_zh": 1}, max_epochs={"books": 4, "web_zh": 2}) == {"books": 0.2, "web_en": 0.7, "web_zh": 0.1}
    with pytest.raises(UsageError, match="allow 6,000 tokens, and the run has 20,000"):
        shares(20_000, weights={"books": 1, "web_en": 0, "web_zh": 1}, max_epochs={"books": 4, "web_zh": 2})
    with pytest.raises(UsageError, match="leaves out web_zh"):
        shares(weights={"books": 1, "web_en": 1})
    with pytest.raises(UsageError, match="names bokks; told apart by source there are books, web_en, web_zh"):
        shares(by="source", max_epochs={"bokks": 1})


def test_a_mixed_run_is_the_same_however_it_is_cut_and_keeps_its_caps() -> None:
    config = MixtureConfig(by="language", weights={"en": 1, "zh": 1}, max_epochs={"zh": 2})
    samples = make_samples(EN_ZH, config, window=17, seed=5, num_samples=1_000)
    assert isinstance(samples, MixedSamples)
    whole = samples.windows(range(1_000))
    again = make_samples(EN_ZH, config, window=17, seed=5, num_samples=1_000)
    assert np.array_equal(np.concatenate([again.windows(range(a, min(a + 7, 1_000))) for a in range(0, 1_000, 7)]), whole)
    chinese = whole[whole[:, 0] >= 1_000_000]
    assert samples.counts(1_000) == {"en": 1_000 - len(chinese), "zh": len(chinese)}
    assert abs(samples.epochs(1_000)["zh"] - 2) < 0.03
    for number in (0, 1, 500, 999):
        source, start = samples.locate(number)
        assert np.array_equal(source.split.window(start, 17), whole[number])
    # a source's samples are those that it would give alone, each window once an epoch
    per_epoch = Samples(EN_ZH.parts["zh"], window=17, seed=5, name="zh").per_epoch
    assert len(np.unique(chinese[:per_epoch], axis=0)) == per_epoch


def test_a_source_too_small_for_two_windows_is_left_out_or_named() -> None:
    split = Numbers(0, parts={**EN_ZH.parts, "fr": Numbers(30)})
    assert make_samples(split, MixtureConfig(by="language"), window=17, seed=1, num_samples=10).names == ["en", "zh"]
    assert make_samples(split, MixtureConfig(by="language", weights={"en": 1, "fr": 0, "zh": 1}), window=17, seed=1, num_samples=10).names == ["en", "zh"]
    with pytest.raises(InputError, match="fr: 30 tokens in train are fewer than two windows"):
        make_samples(split, MixtureConfig(by="language", weights={"en": 1, "fr": 1, "zh": 1}), window=17, seed=1, num_samples=10)
