"""Checkpoints are whole or absent, fall back when broken, never unpickle, and the last way back is never deleted."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
import torch

from llmpipe.errors import InputError, LlmpipeError
from llmpipe.training.checkpoint import checkpoints, load_latest, save


def some_tensors(fill: float) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((3, 4), fill), "optim.w.step": torch.tensor(fill), "optim.w.exp_avg": torch.full((3, 4), -fill)}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, step=7, tensors=some_tensors(7.5), state={"loss_sum": 0.1 + 0.2})
    target = some_tensors(0.0)
    state = load_latest(tmp_path, target)
    assert state is not None and (state["step"], state["loss_sum"]) == (7, 0.1 + 0.2)
    assert all(torch.equal(v, target[k]) for k, v in some_tensors(7.5).items())
    assert load_latest(tmp_path / "none", target) is None


def test_two_are_kept_however_few_are_asked_for(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step=step, tensors=some_tensors(step), state={}, keep=1)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000004", "step-00000003"]


@pytest.mark.parametrize("how", ["flip", "cut", "no state", "no tensors"])
def test_a_broken_one_is_passed_over_and_said(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, step=1, tensors=some_tensors(1), state={})
    newest = save(tmp_path, step=2, tensors=some_tensors(2), state={})
    (file,) = newest.glob("*.safetensors")
    if how == "flip":
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        (newest / "state.json" if how == "no state" else file).unlink()
    (tmp_path / "step-00000003.tmp").mkdir()  # a save that was killed
    target = some_tensors(0.0)
    logging.getLogger("llmpipe").propagate = True
    with caplog.at_level(logging.WARNING, "llmpipe"):
        state = load_latest(tmp_path, target)
    assert state is not None and state["step"] == 1 and target["model.w"][0, 0] == 1
    assert "going back to the checkpoint before it" in caplog.text
    (tmp_path / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(LlmpipeError, match="every checkpoint is broken"):
        load_latest(tmp_path, target)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "optimizer.pt", "rng.pkl"])
def test_pickles_are_refused_unread(tmp_path: Path, name: str) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    folder = save(tmp_path, step=1, tensors=some_tensors(1), state={})
    (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="unpickled"):
        load_latest(tmp_path, some_tensors(0))
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, step=1, tensors=some_tensors(1), state={})
    for other in ({"model.w": torch.zeros(5, 4)}, {"model.other": torch.zeros(3, 4)}):
        with pytest.raises(InputError, match="another model"):
            load_latest(tmp_path, other)
