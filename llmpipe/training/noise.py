"""How much of a text the objectives mlm and span hide, as arithmetic: no torch, so that `--dry-run` and shapes read it too.

    span_window(512, 0.15, 3.0)      # 568: the text whose remains, with a sentinel a span and the end, fill an input of 512
    span_counts(568, 0.15, 3.0)      # (85, 28): tokens that are removed, spans that they make
"""

from __future__ import annotations

MLM_RATE, MLM_EVAL_RATE, SPAN_RATE = 0.3, 0.15, 0.15  # Warner et al. 2024 (after Wettig et al. 2022); Raffel et al. 2019


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Return how many of `length` tokens are removed, and in how many spans, each with a kept token before it."""
    noise = min(max(round(length * rate), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise)


def span_window(seq_len: int, rate: float, mean_span: float) -> int:
    """Return the longest text that fits an input of `seq_len`."""
    length = 2
    while _input_length(length + 1, rate, mean_span) <= seq_len:
        length += 1
    return length


def _input_length(length: int, rate: float, mean_span: float) -> int:
    noise, spans = span_counts(length, rate, mean_span)
    return length - noise + spans + 1
