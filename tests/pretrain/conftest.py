"""Tokens that all pretraining tests read."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.material import bilingual_rows, write_docs_dir


@pytest.fixture(scope="session")
def tokens_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmpipe.cli import main

    root = tmp_path_factory.mktemp("tokens")
    write_docs_dir(root / "docs", bilingual_rows(40))
    before = Path.cwd()
    os.chdir(root)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["tokenizer", "--input", "docs", "--output", "tok", "--set", "vocab_size=380"]) == 0
        assert main(["tokenize", "--input", "docs", "--tokenizer", "tok", "--output", "tokens", "--set", "valid_fraction=0.2", "--workers", "1"]) == 0
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)
    return root


@pytest.fixture
def here(tmp_path: Path, tokens_root: Path) -> Path:
    (tmp_path / "tokens").symlink_to(tokens_root / "tokens")
    return tmp_path
