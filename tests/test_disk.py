"""A disk that fills up and a file-size limit: a clear error, nothing half written, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.material import ENGLISH, write_docs_dir

MOUNT = ["unshare", "--mount"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
CAN_MOUNT = shutil.which("unshare") is not None and subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
needs_mount = pytest.mark.skipif(not CAN_MOUNT, reason="needs unshare and the right to mount a tmpfs")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Documents that do not compress: 2 MB."""
    rng = random.Random(0)
    rows = [{"id": f"{i:032x}", "text": " ".join(rng.choice(ENGLISH) + f"{rng.getrandbits(64):x}" for _ in range(2000))} for i in range(40)]
    return write_docs_dir(tmp_path / "in", rows, shards=4)


@needs_mount
def test_full_disk_is_an_error_with_a_way_out(source, tmp_path):
    (tmp_path / "small").mkdir()
    clean = f"{sys.executable} -m llmpipe clean --input {source} --output small/out --set presets=[] --set filters=[] --workers 1"
    script = f"mount -t tmpfs -o size=700k tmpfs small && {{ {clean}; echo code $?; ls -A small/out small/out/*.parquet; mount -o remount,size=20m small && {clean}; echo code $?; {sys.executable} -m llmpipe verify small/out; }}"
    out = subprocess.run([*MOUNT, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert out.stderr.count("error: ") == 1 and "error: no space left on the disk" in out.stderr and "same command again" in out.stderr, out.stderr
    lines = out.stdout.splitlines()
    assert [line for line in lines if line.startswith("code")] == ["code 1", "code 0"]
    assert "manifest.json" not in lines[: lines.index("code 0")] and not any(line.endswith(".tmp") for line in lines)
    assert lines[-1].endswith("files match their digests")


def test_file_size_limit_is_an_error_with_a_way_out(source, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "llmpipe", "clean", "--input", str(source), "--output", "out", "--set", "presets=[]", "--set", "filters=[]", "--workers", "1"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert out.returncode == 1 and "file-size limit" in out.stderr and "ulimit -f" in out.stderr and "Traceback" not in out.stderr
    assert not list((tmp_path / "out").glob("*.parquet")) and not list((tmp_path / "out").glob(".*.tmp"))
    again = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and json.loads(again.stdout)["counts"]["kept"] == 40
