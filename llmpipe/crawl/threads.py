"""Run fetches in threads, and wake the crawl's loop when one is done.

    pool = FetchThreads(fetcher, num_threads=16)
    pool.submit(ticket, Target(url=...)); pool.finished() -> [(ticket, Fetched), ...]; pool.close()

`pool.wake` is readable while results wait: the loop sleeps on it and on the pipes of the extraction workers together.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from llmpipe.crawl import sitemap
from llmpipe.crawl.fetch import Fetched, Fetcher, Target

JOIN_S = 1.0


class FetchThreads:
    def __init__(self, fetcher: Fetcher, *, num_threads: int) -> None:
        self.fetcher, self.pending = fetcher, 0
        self._jobs: SimpleQueue[tuple[Any, Target] | None] = SimpleQueue()
        self._done: deque[tuple[Any, Fetched]] = deque()
        self._closing = False
        self.wake, self._waker = socket.socketpair()
        self.wake.setblocking(False)
        self._waker.setblocking(False)
        # daemons: a thread stuck in a name lookup must not keep the process
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True) for n in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, ticket: Any, target: Target) -> None:
        self.pending += 1
        self._jobs.put((ticket, target))

    def finished(self) -> list[tuple[Any, Fetched]]:
        """Return what is done since the last call; never waits."""
        with suppress(BlockingIOError):
            while self.wake.recv(4096):
                pass
        done = []
        while self._done:
            done.append(self._done.popleft())
        self.pending -= len(done)
        return done

    def close(self) -> None:
        """Cut what is in flight and end the threads; those that hang in a name lookup are left to die with the process."""
        self._closing = True
        for _ in self._threads:
            self._jobs.put(None)
        self.fetcher.abort()
        for thread in self._threads:
            thread.join(JOIN_S / len(self._threads))
        self.wake.close()
        self._waker.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing:
            ticket, target = job
            fetched = self.fetcher.fetch(target)
            if fetched.kind == "sitemap" and fetched.rule is None:
                found = sitemap.parse(fetched.body, fetched.url)
                fetched.sitemap, fetched.body = found, b""
            self._done.append((ticket, fetched))
            with suppress(OSError):  # full: it is readable already; closed: nobody listens any more
                self._waker.send(b"\0")
