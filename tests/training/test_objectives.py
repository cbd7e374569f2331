"""Masks and spans are a pure function of (seed, sample), in the shares that the papers name; special tokens are left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmpipe.data.files import write_json
from llmpipe.errors import InputError
from llmpipe.models.linear_loss import IGNORE
from llmpipe.tokenizer.directory import load_tokenizer, token_roles
from llmpipe.tokenizer.train import train_bpe, write_tokenizer
from llmpipe.training.noise import span_counts, span_window
from llmpipe.training.objectives import MaskedLM, SpanCorruption, draws, make_objective, segment_lengths
from llmpipe.training.settings import NoiseConfig
from tests.material import chinese, english


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tok")
    write_tokenizer(path, train_bpe([english(1, 60), chinese(2, 60)], vocab_size=420, max_run_chars=64, num_sentinels=32))
    return path


def text_windows(tokenizer_dir: Path, rows: int, width: int) -> np.ndarray:
    """Texts in English and Chinese in turn, an end token behind each."""
    tokenizer, end, ids = load_tokenizer(tokenizer_dir), token_roles(tokenizer_dir).eos, []
    for i in range(10_000):
        ids += [*tokenizer.encode(english(i, 2) if i % 2 else chinese(i, 2)).ids, end]
        if len(ids) >= rows * width:
            return np.array(ids[: rows * width]).reshape(rows, width)
    raise AssertionError


def masked(tokenizer_dir: Path, *, seed: int = 1, rate: float | None = None) -> MaskedLM:
    objective = make_objective("mlm", noise=NoiseConfig(rate=rate), seed=seed, tokenizer=tokenizer_dir)
    assert isinstance(objective, MaskedLM)
    return objective


def spans(tokenizer_dir: Path, *, seed: int = 1) -> SpanCorruption:
    objective = make_objective("span", noise=NoiseConfig(), seed=seed, tokenizer=tokenizer_dir)
    assert isinstance(objective, SpanCorruption)
    return objective


@pytest.mark.parametrize("make", [masked, spans])
def test_a_samples_noise_depends_on_seed_and_number_alone(tokenizer_dir: Path, make) -> None:
    objective, windows = make(tokenizer_dir), text_windows(tokenizer_dir, 6, 100)
    together = objective.batch(windows, range(40, 46))
    for i in range(6):
        alone = objective.batch(windows[i : i + 1], [40 + i])
        assert torch.equal(alone.ids[0], together.ids[i]) and torch.equal(alone.targets[0], together.targets[i])
    assert not torch.equal(objective.batch(windows, range(41, 47)).ids, together.ids)
    assert not torch.equal(make(tokenizer_dir, seed=2).batch(windows, range(40, 46)).ids, together.ids)


def test_masking_has_the_shares_that_it_says_and_leaves_special_tokens_alone(tokenizer_dir: Path) -> None:
    roles, windows = token_roles(tokenizer_dir), text_windows(tokenizer_dir, 400, 126)
    objective = masked(tokenizer_dir)
    assert objective.window(128) == 126
    batch = objective.batch(windows, range(400))
    assert batch.ids.shape == (400, 128) and batch.targets.shape == (400, round(0.3 * 126))
    assert (batch.ids[:, 0] == roles.cls).all() and (batch.ids[:, -1] == roles.sep).all()
    special = torch.tensor(sorted(roles.all))
    assert not torch.isin(batch.targets, special).any() and batch.count == batch.targets.numel()
    rebuilt = batch.ids.scatter(1, batch.places, batch.targets)
    assert torch.equal(rebuilt[:, 1:-1], torch.from_numpy(windows))
    shown = batch.ids.gather(1, batch.places)
    kept, hidden = (shown == batch.targets).float().mean().item(), (shown == roles.mask).float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.01) and kept == pytest.approx(0.1 + 0.1 / 390, abs=0.01)
    others = shown[(shown != batch.targets) & (shown != roles.mask)]
    assert not torch.isin(others, special).any() and len(others.unique()) > 300
    used = np.bincount(batch.places.flatten().numpy(), minlength=128)
    assert used[0] == used[127] == 0 and used[1:127].min() > 0.7 * used[1:127].mean()
    assert masked(tokenizer_dir, rate=0.4).for_evaluation().batch(windows, range(400)).targets.shape[1] == round(0.15 * 126)
    a, b = (masked(tokenizer_dir, seed=s).for_evaluation().batch(windows, range(400)).ids for s in (3, 4))
    assert torch.equal(a, b)  # runs with different seeds are asked the same


def test_a_row_with_too_few_normal_tokens_masks_those_only(tokenizer_dir: Path) -> None:
    roles = token_roles(tokenizer_dir)
    window = np.full((1, 40), roles.eos)
    window[0, 7] = 300
    batch = masked(tokenizer_dir).batch(window, [0])
    assert batch.count == 1 and batch.targets.max() == 300 and (batch.targets == IGNORE).sum() == 11
    assert (batch.ids[0, 1:-1][torch.from_numpy(window[0] == roles.eos)] == roles.eos).all()


def test_spans_can_be_put_back_and_fill_the_length_asked_for(tokenizer_dir: Path) -> None:
    assert span_counts(568, 0.15, 3.0) == (85, 28) and span_window(512, 0.15, 3.0) == 568  # Raffel et al.: 512 and 114
    roles, objective = token_roles(tokenizer_dir), spans(tokenizer_dir)
    length = objective.window(512)
    windows = text_windows(tokenizer_dir, 8, length)
    batch = objective.batch(windows, range(8))
    assert batch.ids.shape == (8, 512) and batch.targets.shape == batch.decoder_ids.shape == (8, 114)
    assert (batch.decoder_ids[:, 0] == roles.pad).all() and torch.equal(batch.decoder_ids[:, 1:], batch.targets[:, :-1])
    assert (batch.ids[:, -1] == roles.eos).all() and (batch.targets[:, -1] == roles.eos).all()
    sentinels = set(roles.sentinels)
    for row in range(8):
        pieces: dict[int, list[int]] = {}
        order = []
        for token in batch.targets[row, :-1].tolist():
            if token in sentinels:
                order.append(token)
                pieces[token] = []
            else:
                pieces[order[-1]].append(token)
        assert order == list(roles.sentinels[:28]) and all(pieces.values())
        whole = [t for token in batch.ids[row, :-1].tolist() for t in pieces.get(token, [token])]
        assert whole == windows[row].tolist()


def test_every_seq_len_is_filled_to_within_a_token(tokenizer_dir: Path) -> None:
    objective = spans(tokenizer_dir)
    for seq_len in (8, 16, 33, 64, 127, 256, 512):
        length = objective.window(seq_len)
        batch = objective.batch(text_windows(tokenizer_dir, 2, length), range(2))
        assert seq_len - 1 <= batch.ids.shape[1] <= seq_len


def test_segments_are_cut_uniformly() -> None:
    lengths = segment_lengths(10, 3, draws(1, "test", range(20_000), 9))
    assert lengths.shape == (20_000, 3) and (lengths.sum(1) == 10).all() and lengths.min() == 1
    assert np.allclose(lengths.mean(0), 10 / 3, atol=0.05)


def test_draws_are_uniform_and_independent() -> None:
    x = draws(1, "test", range(2000), 50) / 2.0**64
    assert abs(x.mean() - 0.5) < 0.005 and abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 0.01 and len(np.unique(x)) == x.size
    assert (draws(1, "other", range(5), 50) != draws(1, "test", range(5), 50)).all()


@pytest.mark.parametrize(("objective", "missing", "message"), [("mlm", "mask", "no token for mask"), ("span", "<extra", "no token for sentinels"), ("span", "pad", "no token for pad")])
def test_a_tokenizer_that_lacks_a_token_is_said(tmp_path: Path, objective: str, missing: str, message: str) -> None:
    tokenizer = train_bpe([english(1, 60)], vocab_size=420, max_run_chars=64, num_sentinels=0 if objective == "span" and missing != "pad" else 4)
    raw = tokenizer.to_str().replace(f"<|{missing}|>", f"<|no_{missing}|>")
    (tmp_path / "tokenizer.json").write_text(raw, encoding="utf-8")
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "<|endoftext|>"} if missing == "pad" else {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    with pytest.raises(InputError, match=message) as error:
        make_objective(objective, noise=NoiseConfig(), seed=1, tokenizer=tmp_path)
    assert error.value.hint and "tokenizer_config.json" in error.value.hint


@pytest.mark.parametrize("spellings", [("[MASK]", "[CLS]", "[SEP]"), ("<mask>", "<s>", "</s>")])
def test_roles_are_found_under_the_names_of_other_families(tmp_path: Path, tokenizer_dir: Path, spellings: tuple[str, str, str]) -> None:
    raw = (tokenizer_dir / "tokenizer.json").read_text(encoding="utf-8")
    for ours, theirs in zip(("<|mask|>", "<|cls|>", "<|sep|>"), spellings, strict=True):
        raw = raw.replace(ours, theirs)
    (tmp_path / "tokenizer.json").write_text(raw, encoding="utf-8")
    named = {"mask_token": {"content": spellings[0], "lstrip": True}, "cls_token": spellings[1], "sep_token": spellings[2]}
    for settings in ({}, named):
        write_json(tmp_path / "tokenizer_config.json", settings)
        ours, theirs = token_roles(tokenizer_dir), token_roles(tmp_path)
        assert (theirs.mask, theirs.cls, theirs.sep) == (ours.mask, ours.cls, ours.sep)
