"""The README is true: every command block runs, verbatim, in order; only sizes are made small, through the environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.material import chinese, english

ROOT = Path(__file__).parents[1]
SMALL = {
    "LLMPIPE_CRAWL_MAX_PAGES": "120",
    "LLMPIPE_TOKENIZE_VALID_FRACTION": "0.2",
    "LLMPIPE_FINETUNE_LABEL_FROM__MIN_DOCUMENTS": "3",
    "LLMPIPE_TOKENIZER_VOCAB_SIZE": "500",
    "LLMPIPE_PRETRAIN_STEPS": "8",
    "LLMPIPE_PRETRAIN_BATCH_TOKENS": "512",
    "LLMPIPE_PRETRAIN_SEQ_LEN": "64",
    "LLMPIPE_FINETUNE_EPOCHS": "1",
    "LLMPIPE_FINETUNE_MAX_TRAIN_EXAMPLES": "40",
    "LLMPIPE_GENERATE_MAX_NEW_TOKENS": "8",
}


def blocks(readme: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / readme).read_text(encoding="utf-8"), re.M | re.S)


def checkout(tmp_path: Path) -> Path:
    """A copy of the tree with the environment that the tests run in, so that the scripts find everything set up."""
    top = tmp_path / "llmpipe"
    shutil.copytree(ROOT, top, ignore=shutil.ignore_patterns(".git", ".venv", "runs", ".*_cache", "__pycache__", "*.egg-info", "tests"))
    (top / ".venv").symlink_to(Path(sys.executable).parents[1])  # scripts/setup finds its stamp there
    (top / "my-texts").mkdir()
    for i in range(40):
        (top / "my-texts" / f"{i}.txt").write_text(english(i, 30) if i % 2 else chinese(i, 30), encoding="utf-8")
    return top


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_every_command_block_of_the_readme_runs(readme, tmp_path):
    top = checkout(tmp_path)
    commands = [c for block in blocks(readme) for c in block.splitlines() if c and c != "scripts/test"]  # scripts/test is what runs this
    assert commands[0] == "scripts/quickstart" and len(commands) > 15
    environment = {**os.environ, **SMALL, "PYTHONPATH": str(top)}
    if readme != "README.md":  # the same commands, as the next test holds: once is enough for the long one
        commands = commands[1:3]
    script = "set -eu\n" + "\n".join(commands)
    out = subprocess.run(["bash", "-c", script], cwd=top, env=environment, capture_output=True, text=True, timeout=900)
    assert out.returncode == 0, out.stderr[-3000:]
    if readme == "README.md":
        assert (top / "runs" / "quickstart" / "report.md").is_file() and (top / "models" / "base-hf" / "model.safetensors").is_file()


def test_both_readmes_give_the_same_commands():
    strip = [[re.sub(r"\s+#.*", "", line) for line in block.splitlines()] for block in blocks("README.md")]
    assert strip == [[re.sub(r"\s+#.*", "", line) for line in block.splitlines()] for block in blocks("README.zh-CN.md")]


def test_tree_in_the_readme_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:llmpipe|configs|scripts|docs)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_every_shipped_config_loads():
    from llmpipe.config import load
    from llmpipe.pipeline import load_pipeline
    from llmpipe.stage import STAGES

    found = sorted((ROOT / "configs").rglob("*.yaml"))
    assert len(found) >= 5
    for path in found:
        if path.parent.name == "pipelines":
            load_pipeline(path)
        else:
            load(STAGES[path.parent.name].load().Config, stage=path.parent.name, file=path)
