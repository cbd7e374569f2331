"""Regularised losses and document masks say what their formulas say, and change nothing when they are off."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmpipe.models.documents import document_ids, document_mask
from llmpipe.models.linear_loss import IGNORE, linear_cross_entropy
from llmpipe.models.regularized_loss import regularized_cross_entropy
from tests.models.test_transformer import some_ids, tiny


@pytest.mark.parametrize(("smoothing", "z"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)])
def test_loss_and_gradients_are_those_of_the_formula(smoothing: float, z: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpipe.models.regularized_loss.CHUNK_ELEMENTS_CPU", 5 * 17)  # chunks of 5 tokens
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 6, 8, generator=generator).requires_grad_(), torch.randn(17, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, 17, (2, 6), generator=generator)
    targets[0, 2] = IGNORE
    logits = (hidden @ weight.T).flatten(0, 1)
    kept = targets.flatten() != IGNORE
    wanted = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing) + z * logits[kept].logsumexp(-1).square().sum()
    loss = regularized_cross_entropy(hidden, weight, targets, label_smoothing=smoothing, z_loss=z)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(wanted, (hidden, weight)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    if not smoothing and not z:
        assert loss.item() == pytest.approx(linear_cross_entropy(hidden, weight, targets).item(), rel=1e-5)


def test_documents_end_with_their_separator() -> None:
    ids = torch.tensor([[5, 6, 0, 7, 0, 8], [0, 5, 6, 7, 8, 9]])
    assert document_ids(ids, 0).tolist() == [[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]
    seen = document_mask(ids, 0, causal=True)
    assert seen.shape == (2, 1, 6, 6) and seen[0, 0, 4].tolist() == [False, False, False, True, True, False]
    assert document_mask(ids, 0, causal=False)[0, 0, 0].tolist() == [True, True, True, False, False, False]


def test_a_masked_document_reads_as_if_alone() -> None:
    model, ids = tiny().eval(), some_ids()[:1]
    ids[ids == 0] = 1
    ids[0, 7] = 0
    model.model.separator = 0
    together = model(ids)
    alone = model(ids[:, :8])
    assert torch.allclose(together[:, :8], alone, atol=1e-5)
    second = tiny().eval()
    second.load_state_dict(model.state_dict())
    assert torch.allclose(together[:, 8:], second(ids[:, 8:]), atol=1e-4)  # rotary positions count distances alone
    assert not torch.allclose(together[:, 8:], second(ids)[:, 8:], atol=1e-3)
