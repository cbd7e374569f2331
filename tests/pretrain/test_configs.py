"""Every shipped pretraining config is valid and means the size that it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmpipe.config import load
from llmpipe.errors import UsageError
from llmpipe.pretrain.shape import shape_of
from llmpipe.pretrain.stage import Config
from tests.tiny import make_model

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"


@pytest.mark.parametrize(("name", "vocab_size", "millions", "steps"), [("cpu_small", 4096, 4.3, 400), ("mixture", 4096, 4.3, 400), ("one_gpu", 32768, 110.1, 4201), ("multi_gpu", 32768, 337.2, 12863), ("bert_small", 8192, 5.4, 2000), ("t5_small", 8192, 11.7, 1000)])
def test_shipped_configs(name: str, vocab_size: int, millions: float, steps: int) -> None:
    shape = shape_of(load(Config, stage="pretrain", file=FOLDER / f"{name}.yaml"), vocab_size=vocab_size)
    assert round(shape.num_params / 1e6, 1) == millions and shape.steps == steps


def test_every_shipped_config_is_tested() -> None:
    assert {p.stem for p in FOLDER.glob("*.yaml")} == {"cpu_small", "mixture", "one_gpu", "multi_gpu", "bert_small", "t5_small", "continue"}


def test_the_config_for_going_on_takes_its_shape_from_the_model(tmp_path: Path) -> None:
    make_model(tmp_path, max_seq_len=128)
    config = load(Config, stage="pretrain", file=FOLDER / "continue.yaml", sets=[f"init={tmp_path}"])
    shape = shape_of(config, vocab_size=380)
    assert (shape.num_layers, shape.dim, shape.num_kv_heads, shape.seq_len) == (2, 32, 2, 128) and shape.vocab_size >= 380


def test_defaults_by_size() -> None:
    small, large = (shape_of(Config(depth=depth), vocab_size=4096) for depth in (4, 12))
    assert (small.seq_len, small.tokens_per_step, small.num_heads) == (256, 32_768, 4)
    assert (large.seq_len, large.num_heads, large.head_dim) == (1024, 6, 128)
    assert small.steps == -(-20 * small.num_params // small.tokens_per_step)
    assert shape_of(Config(tokens=2_000_000), vocab_size=4096).tokens_per_step == 8192  # a short run takes small steps
    with pytest.raises(UsageError, match="do not divide evenly"):
        shape_of(Config(depth=1, model=Config().model.__class__(num_heads=3)), vocab_size=4096)
