"""What the machine lacks is said before anything starts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from llmpipe.errors import UsageError
from llmpipe.pretrain.stage import Config, resolve
from llmpipe.training.compute import DEVICES, can_compile, check_fp8, equip
from tests.models.test_transformer import some_ids, tiny


def test_fp8_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(UsageError, match="fp8 needs a GPU of NVIDIA's Hopper generation or later, this is a CPU"):
        check_fp8("cpu")
    with pytest.raises(UsageError, match="Hopper"):
        resolve(Config(dtype="fp8", device="cpu"))


@pytest.mark.parametrize("compiler", ["/nonexistent/g++", "false"])
def test_without_a_compiler_compile_stays_off_in_one_line(compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("llmpipe").propagate = True
    monkeypatch.setenv("CXX", compiler)
    assert not can_compile() and not resolve(Config(compile=True, device="cpu")).compile
    assert caplog.text.count("torch.compile is off") == 2
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not can_compile() and "there is no C++ compiler" in caplog.text


def test_computing_activations_again_gives_the_same_gradients_under_the_same_names() -> None:
    plain, again = tiny(), tiny()
    again.load_state_dict(plain.state_dict())
    equip(again, device="cpu", dtype="fp32", checkpoint_activations=True, compiled=False)
    ids = some_ids()
    for model in (plain, again):
        model(ids, ids.roll(-1, 1)).backward()
    assert again.state_dict().keys() == plain.state_dict().keys()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_peaks_are_dense() -> None:
    assert DEVICES["H100"].peak == 989e12 and DEVICES["A100"].peak == 312e12 and DEVICES["T4"].dtype == "fp32"


def test_threads_are_no_part_of_a_recipe_on_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llmpipe.models.device.choose_device", lambda wanted: "cuda")
    monkeypatch.setattr("llmpipe.models.device.bf16_is_fast", lambda device: True)
    found = set()
    for value in ("1", "16"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        found.add(resolve(Config(compile=False)).threads)
    assert found == {1}
