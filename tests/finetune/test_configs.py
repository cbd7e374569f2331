"""Every shipped config of finetune and eval is one that its stage takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmpipe.config import load
from llmpipe.stage import STAGES

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted([*CONFIGS.glob("finetune/*.yaml"), *CONFIGS.glob("eval/*.yaml")]), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_config_loads(path):
    stage = path.parent.name
    config = load(STAGES[stage].load().Config, stage=stage, file=path, environ={})
    assert config is not None
