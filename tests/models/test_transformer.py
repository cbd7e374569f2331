"""The Transformer computes what its config says, with and without a cache."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmpipe.models.norms import RMSNorm
from llmpipe.models.transformer import IGNORE, KVCache, ModelConfig, Transformer


def tiny(**changes: object) -> Transformer:
    config = ModelConfig(**{"vocab_size": 97, "num_layers": 2, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 32, **changes})
    model = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    model.initialize(generator)
    with torch.no_grad():  # the initialisation makes blocks the identity; here they must matter
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def some_ids(rows: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_cached_pass_equals_whole_pass() -> None:
    model, ids = tiny(), some_ids()
    cache = KVCache(model.config, batch_size=2, max_len=20)
    pieces = [ids[:, :7], ids[:, 7:12], *[ids[:, i : i + 1] for i in range(12, 20)]]
    parts = [model.hidden(piece, cache=cache) for piece in pieces]
    assert torch.allclose(torch.cat(parts, dim=1), model.hidden(ids), atol=1e-5)
    with pytest.raises(ValueError, match="cache holds 20"):
        model.hidden(ids[:, :1], cache=cache)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing() -> None:
    model, ids = tiny(), some_ids(1, 9)
    plain = model.hidden(ids)
    padding = torch.zeros(1, 4, dtype=torch.long)
    keep = torch.tensor([[0] * 4 + [1] * 9])
    left = model.hidden(torch.cat([padding, ids], dim=1), attention_mask=keep)
    assert torch.allclose(left[:, 4:], plain, atol=1e-5)
    assert torch.isfinite(left).all()
    right = model.hidden(torch.cat([ids, padding], dim=1))
    assert torch.allclose(right[:, :9], plain, atol=1e-5)


@torch.no_grad()
def test_no_token_sees_the_future() -> None:
    model, ids = tiny(), some_ids()
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 97
    a, b = model(ids), model(changed)
    assert torch.equal(a[:, :10], b[:, :10]) and not torch.equal(a[:, 10:], b[:, 10:])


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_plain_cross_entropy(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmpipe.models.linear_loss.CHUNK_ELEMENTS_CPU", 97 * 7)  # several chunks, the last one short
    model, ids = tiny(tie_embeddings=tied), some_ids()
    targets = ids.roll(-1, 1)
    targets[:, -3:] = IGNORE
    loss = model(ids, targets)
    (loss * 0.5).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    plain = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum")
    (plain * 0.5).backward()
    assert torch.allclose(loss, plain, rtol=1e-5)
    for name, p in model.named_parameters():
        assert torch.allclose(ours[name], p.grad, atol=1e-4), name


def test_loss_in_bf16_stays_near_fp32() -> None:
    model, ids = tiny(), some_ids()
    targets = ids.roll(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(ids, targets)
    assert low.dtype == torch.float32
    assert abs(low / model(ids, targets) - 1) < 0.01


def test_same_seed_same_weights_and_a_uniform_start() -> None:
    config = ModelConfig(vocab_size=97, num_layers=2, dim=32, num_heads=4)
    models = [Transformer(config), Transformer(config)]
    for model in models:
        model.initialize(torch.Generator().manual_seed(5))
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(a, b)
    ids = some_ids()
    loss = models[0](ids, ids.roll(-1, 1)) / ids.numel()
    assert abs(loss.item() - torch.tensor(97.0).log().item()) < 0.1


@pytest.mark.parametrize(("changes", "message"), [({"num_kv_heads": 3}, "num_kv_heads"), ({"dim": 30}, "dim 30"), ({"dim": 36, "num_heads": 4, "num_kv_heads": 4}, "odd")])
def test_impossible_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_too_long_a_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="max_seq_len 32"):
        tiny()(torch.zeros(1, 33, dtype=torch.long))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_own_rms_norm_equals_torchs_in_both_directions(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x, upstream = (torch.randn(2, 5, 3, 16, generator=generator).to(dtype).requires_grad_(i == 0) for i in range(2))
    norm = RMSNorm(16, eps=1e-6, dtype=dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(16, generator=generator) + 0.5)
    expected = F.rms_norm(x, (16,), norm.weight, 1e-6)
    wanted = torch.autograd.grad(expected, (x, norm.weight), upstream)
    got = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    assert torch.allclose(norm(x), expected, atol=tolerance, rtol=tolerance)
    assert all(torch.allclose(a, b, atol=tolerance, rtol=tolerance) for a, b in zip(got, wanted, strict=True))
