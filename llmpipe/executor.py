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


def map_units(function: Callable[[U], R], units: Sequence[U], *, workers: int) -> Iterator[tuple[int, R]]:
    """Yield `(index, function(unit))` as units finish; run them here when one worker or one unit is all there is.

    Raises what `function` raised; a worker killed from outside (out of memory, say) is an `LlmpipeError`.
    """
    workers = min(workers, len(units))
    if workers <= 1:
        for index, unit in enumerate(units):
            yield index, function(unit)
        return
    # spawn: a fork of a process with threads (torch, pyarrow) can deadlock, and would share its locks
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent, initargs=(os.getpid(),))
    pending: dict[Any, int] = {}
    todo = iter(enumerate(units))
    try:
        while True:
            while len(pending) < 2 * workers and (item := next(todo, None)) is not None:
                pending[pool.submit(function, item[1])] = item[0]
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        raise LlmpipeError("a worker process was killed", hint="was memory short? try fewer --workers; the same command goes on where it stopped") from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        if sys.exc_info()[0] is not None or pending:
            for process in processes:
                process.kill()
        for process in processes:
            process.join()


def die_with_parent(parent: int) -> None:
    """Make this child process die when its parent does, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
