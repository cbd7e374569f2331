"""Worker processes: results by unit, errors with their hints, and no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from llmpipe.errors import InputError, LlmpipeError
from llmpipe.executor import map_units


def square(n: int) -> int:
    return n * n


def fail(n: int) -> int:
    raise InputError(f"文件 {n} is broken", hint="restore it")


def die(n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.parametrize("workers", [1, 2])
def test_every_unit_once(workers):
    assert sorted(map_units(square, list(range(7)), workers=workers)) == [(n, n * n) for n in range(7)]


def test_an_error_in_a_worker_keeps_message_hint_and_code():
    with pytest.raises(InputError, match="文件 . is broken") as caught:
        list(map_units(fail, [0, 1, 2], workers=2))
    assert caught.value.hint == "restore it" and caught.value.exit_code == 3


def test_a_killed_worker_is_an_error_not_a_hang():
    with pytest.raises(LlmpipeError, match="worker process was killed"):
        list(map_units(die, [0, 1], workers=2))


SCRIPT = """
import sys, time
from llmpipe.executor import map_units
def wait(n):
    print(__import__("os").getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    list(map_units(wait, [0, 1], workers=2))
"""


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        children = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
