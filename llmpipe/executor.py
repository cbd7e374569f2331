"""Run a function over units of work in processes on this machine.

    for index, result in map_units(function, units, workers=2): ...

Results come as they finish; a unit's result is a pure function of the unit, so their order changes nothing.
Children die with their parent (PR_SET_PDEATHSIG) and leave Ctrl-C to it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from llmpipe.errors import LlmpipeError

U = TypeVar("U")
R = TypeVar("R")
PR_SET_PDEATHSIG = 1


class Pool:
    """Worker processes that serve all phases of a run: they start at the first use and import what they need once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[[U], R], unit: U) -> Any:
        if self._executor is None:
            # spawn: a fork of a process with threads (torch, pyarrow) can deadlock, and would share its locks
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),))
        return self._executor.submit(function, unit)

    def close(self, *, kill: bool = False) -> None:
        """End the processes; with `kill` at once, whatever they do (idle ones take 0.2 s to leave by themselves)."""
        if self._executor is None:
            return
        processes = list((self._executor._processes or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = None
        for process in processes:
            if kill:
                process.kill()
            process.join()


def map_units(function: Callable[[U], R], units: Sequence[U], *, workers: int, pool: Pool | None = None) -> Iterator[tuple[int, R]]:
    """Yield `(index, function(unit))` as units finish; run them here when one worker or one unit is all there is.

    Raises what `function` raised; a worker killed from outside (out of memory, say) is an `LlmpipeError`.
    """
    workers = min(workers, len(units))
    if workers <= 1:
        for index, unit in enumerate(units):
            yield index, function(unit)
        return
    own = pool or Pool(workers)
    pending: dict[Any, int] = {}
    todo = iter(enumerate(units))
    try:
        while True:
            while len(pending) < 2 * workers and (item := next(todo, None)) is not None:
                pending[own.submit(function, item[1])] = item[0]
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        raise LlmpipeError("a worker process was killed", hint="was memory short? try fewer --workers; the same command goes on where it stopped") from None
    finally:
        failed = sys.exc_info()[0] is not None or bool(pending)
        if failed or pool is None:
            own.close(kill=failed)


def die_with_parent(parent: int) -> None:
    """Make this child process die when its parent does, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
