"""What the tests share: running llmpipe as a user does, and making small directories of documents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes at a time would fight over the cores


@pytest.fixture
def llmpipe(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `llmpipe ARGUMENTS` in `tmp_path` and return exit code, stdout and stderr."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        options = {"cwd": tmp_path, "timeout": 300, **options}
        return subprocess.run([sys.executable, "-m", "llmpipe", *map(str, arguments)], capture_output=True, text=True, encoding="utf-8", **options)

    return run


@pytest.fixture
def llmpipe_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same within this process, for commands that are many and short: an interpreter takes longer to start than they to run."""
    from llmpipe import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = cli.main([str(a) for a in arguments])
        finally:
            signal.signal(signal.SIGTERM, before)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Like `llmpipe`, in this process: seconds faster where torch and tokenizers are loaded already."""
    import signal

    from llmpipe.cli import main

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            code = main([str(a) for a in arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
        done = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, done.out, done.err)

    return call


@pytest.fixture
def make_docs() -> Callable[..., Path]:
    """Make a directory of documents of texts, with a manifest, as ingest would."""
    from tests.material import write_docs_dir

    return write_docs_dir
