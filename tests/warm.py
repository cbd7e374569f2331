"""Real processes that run llmpipe and can be killed, forked from a server that has torch loaded already.

    process = start(tmp_path, ["pretrain", ...], log=tmp_path / "log.txt")       # .pid, .is_alive(), .join(), .exitcode

Each is as much a process as `python -m llmpipe` is, but begins its work at once: importing torch, its optimizers and its
checkpoints takes ten seconds of a slow core, and the kill tests start dozens.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.warm_imports"])


def start(directory: Path, arguments: Sequence[object], *, log: Path, environ: Mapping[str, str] | None = None) -> multiprocessing.process.BaseProcess:
    """Run `llmpipe ARGUMENTS` in `directory`, with stdout and stderr in `log`."""
    process = _context.Process(target=_run, args=(str(directory), [str(a) for a in arguments], str(log), dict(environ or {})))
    process.start()
    return process


def start_ranks(directory: Path, arguments: Sequence[object], *, size: int, log: Path) -> list[multiprocessing.process.BaseProcess]:
    """Run it as torchrun would, `size` processes of one group; rank r logs to `<log>.r`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(directory, arguments, log=log.with_name(f"{log.name}.{r}"), environ={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(size)]


def _run(directory: str, arguments: list[str], log: str, environ: dict[str, str]) -> None:
    from llmpipe.cli import main

    os.environ.update(environ)
    os.chdir(directory)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.exit(main(arguments))
