"""Rules of the cron wrapper: one run at a time, silence when all is well, exit codes, a log that rotates."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from llmpipe.data.docs import read_docs
from llmpipe.data.manifest import find_manifest
from tests.crawl.server import Answer, page, serve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def refresh(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start scripts/refresh.sh in a folder that looks like a checkout."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "refresh.sh", tmp_path / "scripts")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [str(tmp_path / "scripts" / "refresh.sh"), *arguments]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def pipeline(top: Path, url: str) -> Path:
    (path := top / "news.yaml").write_text(
        f"steps:\n  - crawl: {{seeds: ['{url}'], allow_private: true, delay_s: 0, refresh: due, revisit_h: 0}}\n  - clean: {{presets: [], languages: []}}\n", encoding="utf-8"
    )
    return path


def test_cron_gets_silence_and_only_what_changed_flows_on(tmp_path: Path, refresh: Callable) -> None:
    routes: dict[str, Answer] = {"/": page("Home 首页", links=["/a"]), "/a": page("Before 从前")}
    with serve(routes) as site:
        arguments = (str(pipeline(tmp_path, site.url())), "--output", str(tmp_path / "run"))
        for generation in range(3):
            if generation == 2:
                routes["/a"] = page("After 之后")
            process = refresh(*arguments)
            assert process.communicate(timeout=60) == ("", "") and process.returncode == 0
            parts = sorted(p.name for p in (tmp_path / "run" / "crawl").glob("*.parquet"))
            assert len(parts) == (2 if generation == 2 else 1)
    cleaned = [row for batch in read_docs(tmp_path / "run" / "clean") for row in batch.to_pylist()]
    assert {row["op"]: "之后" in row["text"] for row in cleaned} == {"new": False, "changed": True}
    last = find_manifest(tmp_path / "run" / "clean").generations[-1]
    assert last.counts["read"] == 1  # the changed page alone
    log = (tmp_path / "logs" / "news.log").read_text("utf-8")
    assert len(re.findall("end: exit code 0", log)) == 3


def test_one_run_at_a_time_and_sigterm_is_handed_on(tmp_path: Path, refresh: Callable) -> None:
    asked: list[float] = []

    def slow(handler: BaseHTTPRequestHandler) -> None:
        asked.append(time.monotonic())
        time.sleep(60)

    with serve({"/": page("Home", links=["/slow"]), "/slow": slow}) as site:
        arguments = (str(pipeline(tmp_path, site.url())), "--output", str(tmp_path / "run"))
        first = refresh(*arguments)
        deadline = time.monotonic() + 60
        while not asked and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        second = refresh(*arguments)
        assert "another run is at work" in second.communicate(timeout=20)[1] and second.returncode == 75
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=30)
        assert first.returncode == 143, said
        assert "the same command goes on" in said


def test_a_failure_is_told_on_stderr_and_by_its_code(tmp_path: Path, refresh: Callable) -> None:
    (tmp_path / "wrong.yaml").write_text("steps:\n  - crawl: {seedz: []}\n", encoding="utf-8")
    process = refresh(str(tmp_path / "wrong.yaml"))
    assert "seeds" in process.communicate(timeout=60)[1] and process.returncode == 2
    assert refresh().wait(20) == 2


def test_a_long_log_is_rotated_and_old_ones_go(tmp_path: Path, refresh: Callable) -> None:
    (logs := tmp_path / "kept logs").mkdir()
    (tmp_path / "wrong.yaml").write_text("steps: []\n", encoding="utf-8")
    for n in range(3):
        (logs / "wrong.log").write_text(f"run {n} 第{n}次\n" * 100, encoding="utf-8")
        refresh(str(tmp_path / "wrong.yaml"), LLMPIPE_LOG_DIR=str(logs), LLMPIPE_LOG_BYTES="500", LLMPIPE_LOG_KEEP="2").wait(60)
    assert sorted(p.name for p in logs.iterdir()) == ["wrong.log", "wrong.log.1.gz", "wrong.log.2.gz", "wrong.log.lock"]
    assert gzip.decompress((logs / "wrong.log.2.gz").read_bytes()).decode().startswith("run 1 第1次")
