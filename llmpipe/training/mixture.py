"""Which source each sample is of: shares of several sources, exact for any stretch of samples, with nothing to remember.

    quotas = mixture_quotas({"web": 9_000_000, "books": 500_000}, config, num_tokens=20_000_000)    # {"web": 880_803, …}, of 2**20
    source, index = deal(np.arange(32), np.array(list(quotas.values())), seed=1)                    # sample k is sample `index` of `source`

Samples are dealt like cards from a deck of 2**20 places in bit-reversed order: of any run of samples each source has its
share to within a few samples, however long the run, and how many of a source came before sample k is a sum of 20 terms.
So (seed, k) alone say what sample k is, on any number of processes and after any kill. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmpipe.errors import UsageError
from llmpipe.training.settings import MixtureConfig

BITS = 20
DECK = 1 << BITS


def mixture_quotas(sizes: Mapping[str, int], config: MixtureConfig, *, num_tokens: int) -> dict[str, int]:
    """Turn a mixture's settings into places of the deck for each source. `sizes` and `num_tokens`, the run's length, are in tokens.

    What a source's cap takes from it goes to the others in proportion. Raises `UsageError` for names that no source has,
    and where all caps together leave fewer tokens than the run needs.
    """
    shares = _capped(_wanted(sizes, config), sizes, config.max_epochs, num_tokens)
    exact = {name: share * DECK for name, share in shares.items()}
    quotas = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda n: quotas[n] - exact[n])[: DECK - sum(quotas.values())]:  # the largest remainders first
        quotas[name] += 1
    return quotas


def _wanted(sizes: Mapping[str, int], config: MixtureConfig) -> dict[str, float]:
    for field in ("weights", "max_epochs"):
        if unknown := sorted(set(getattr(config, field)) - set(sizes)):
            raise UsageError(f"mixture.{field} names {', '.join(unknown)}; told apart by {config.by} there are {', '.join(sizes)}", hint="mixture.by: input, source or language")
    if config.weights:
        if missing := sorted(set(sizes) - set(config.weights)):
            raise UsageError(f"mixture.weights leaves out {', '.join(missing)}", hint="give each a weight; 0 leaves a source out")
        raw = {name: float(config.weights[name]) for name in sizes}
    else:
        largest = max(sizes.values())
        raw = {name: (size / largest) ** (1 / config.temperature) for name, size in sizes.items()}
    raw = {name: weight if sizes[name] else 0.0 for name, weight in raw.items()}
    if not (total := sum(raw.values())) > 0:
        raise UsageError("mixture: no source with a weight above 0 has any tokens")
    return {name: weight / total for name, weight in raw.items()}


def _capped(shares: dict[str, float], sizes: Mapping[str, int], max_epochs: Mapping[str, float], num_tokens: int) -> dict[str, float]:
    """Hold each source to its cap; deal what that frees to the others, until no cap is exceeded."""
    most = {name: max_epochs[name] * sizes[name] / num_tokens for name in shares if name in max_epochs}
    fixed: dict[str, float] = {}
    while over := [name for name in shares if name not in fixed and name in most and shares[name] > most[name]]:
        fixed.update({name: most[name] for name in over})
        free = sum(share for name, share in shares.items() if name not in fixed)
        left = 1 - sum(fixed.values())
        if free <= 0:
            possible = int(num_tokens * sum(fixed.values()))
            raise UsageError(f"mixture.max_epochs allow {possible:,} tokens, and the run has {num_tokens:,}", hint="raise a cap, train for fewer tokens, or add a source")
        shares = {name: fixed.get(name, share * left / free) for name, share in shares.items()}
    return shares


def deal(numbers: np.ndarray, quotas: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Say of samples `numbers` (int64) which source each is of, and which sample of that source it is, both int64."""
    ends = np.cumsum(quotas)
    deck, place = np.divmod(np.asarray(numbers, dtype=np.int64), DECK)
    key = _key(seed)
    source = np.searchsorted(ends, _reversed(place) ^ key, side="right")
    return source, deck * quotas[source] + _before(place, (ends - quotas)[source], ends[source], key)


def dealt(count: int, quotas: np.ndarray, *, seed: int) -> np.ndarray:
    """Count how many of the first `count` samples each source has."""
    ends = np.cumsum(quotas)
    deck, place = divmod(count, DECK)
    return deck * quotas + _before(np.full(len(quotas), place), ends - quotas, ends, _key(seed))


def _before(place: np.ndarray, start: np.ndarray, end: np.ndarray, key: int) -> np.ndarray:
    """Count the places below `place` whose cards lie in [start, end).

    The places below p fall into one run for each bit that p has: that bit 0, those above as in p, those below free. Such a
    run's cards are all numbers with the same low bits, so those within an interval are counted by two divisions.
    """
    total = np.zeros(len(place), dtype=np.int64)
    for bit in range(BITS):
        low = BITS - bit  # how many low bits of the card are settled by the places' high ones
        card = (_reversed(((place >> bit) - 1) << bit) ^ key) & ((1 << low) - 1)
        inside = ((end - 1 - card) >> low) - ((start - 1 - card) >> low)
        total += np.where(place >> bit & 1, inside, 0)
    return total


def _reversed(place: np.ndarray) -> np.ndarray:
    """Reverse the order of BITS bits."""
    out = np.zeros_like(place)
    for bit in range(BITS):
        out |= (place >> bit & 1) << (BITS - 1 - bit)
    return out


def _key(seed: int) -> int:
    return (seed * 0x9E3779B1 >> 7) & (DECK - 1)

