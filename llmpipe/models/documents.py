"""Document masking: in a window of several documents no token sees another document's.

    seen = document_mask(ids, separator=eos, causal=True)       # (B, 1, T, T) bool for scaled_dot_product_attention; on a GPU `Spans`
    y = attend_within(q, k, v, spans, causal=True)              # (B, H, T, D) each

A document ends with its separator, which belongs to it. On CPUs (and with FlexAttention out, whose backward pass they
lack) the mask is a matrix; on GPUs attention runs over spans of unequal length and never computes what is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spans:
    """The documents' pieces of a batch, its rows laid end to end."""

    bounds: Tensor  # (number of pieces + 1,) int32
    longest: int


def document_ids(ids: Tensor, separator: int) -> Tensor:
    """Number the documents of each row of (B, T): how many separators stand before a token."""
    ended = (ids == separator).cumsum(1)
    return ended - (ids == separator).long()


def document_mask(ids: Tensor, separator: int, *, causal: bool) -> Tensor | Spans:
    """Who may see whom in a batch (B, T)."""
    documents = document_ids(ids, separator)
    if ids.device.type == "cuda":
        starts = torch.ones_like(ids, dtype=torch.bool)
        starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
        bounds = starts.flatten().nonzero()[:, 0].to(torch.int32)  # the host waits here: their number is the shape
        return Spans(torch.cat((bounds, bounds.new_tensor([ids.numel()]))), ids.shape[1])
    seen = documents[:, None, :, None] == documents[:, None, None, :]
    return seen.tril_() if causal else seen


def attend_within(q: Tensor, k: Tensor, v: Tensor, spans: Spans, *, causal: bool) -> Tensor:
    """Attention inside each span: (B, H, T, D) in and out, keys with as many heads as queries."""
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, width = q.shape
    packed = [t.transpose(1, 2).reshape(rows * length, heads, width) for t in (q, k, v)]
    window = (-1, 0) if causal else (-1, -1)
    y = varlen_attn(*packed, spans.bounds, spans.bounds, spans.longest, spans.longest, window_size=window)
    return y.view(rows, length, heads, width).transpose(1, 2)
