"""Every shipped tokenizer config is valid and of the kind that its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmpipe.config import load
from llmpipe.tokenizer.stage import Config

PATHS = sorted((Path(__file__).parents[2] / "configs" / "tokenizer").glob("*.yaml"))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_shipped_configs_are_of_their_kind(path: Path) -> None:
    config = load(Config, stage="tokenizer", file=path)
    assert config.kind == path.stem.split("_")[0] and config.sentinels == 100


def test_each_kind_has_one() -> None:
    assert {p.stem.split("_")[0] for p in PATHS} == {"bpe", "unigram", "wordpiece"}
