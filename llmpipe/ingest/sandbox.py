"""Parse EPUB, DOCX and PDF files in a process of its own, which may hang, crash or take too much memory without harm.

    with Sandbox(timeout_s=60) as sandbox:
        found = sandbox.call("epub", body, limit=16 << 20)      # {"parts": [...], "title": …} or {"error": "timeout"}

One process for many files; after a failure the next call starts another. It dies with its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from llmpipe.crawl.extract import _limit_memory
from llmpipe.errors import LlmpipeError

START_TIMEOUT_S = 120.0
MAX_RSS_BYTES = 2 << 30
"""A PDF of 256 MB is held twice."""


class Sandbox:
    def __init__(self, *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def call(self, parser: str, body: bytes, **arguments: Any) -> dict[str, Any]:
        """Parse one file; `error` in the result says why there is nothing: timeout, crash, memory or a parser's own word."""
        if self._process is None:
            self._start()
        assert self._connection is not None
        try:
            self._connection.send_bytes(json.dumps({"parser": parser, "arguments": arguments}).encode())
            self._connection.send_bytes(body)
            if not self._connection.poll(self.timeout_s):
                self._stop()
                return {"error": "timeout"}
            return json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._stop()
            return {"error": "crash"}

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from llmpipe.ingest.sandbox import serve; serve(*map(int, sys.argv[1:]))"
            command = [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        try:
            ready = self._connection.poll(START_TIMEOUT_S) and self._connection.recv_bytes() == b"{}"
        except (EOFError, OSError):
            ready = False
        if not ready:
            self._stop()
            raise LlmpipeError("the process that parses books does not start", hint="llmpipe doctor checks the installation")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def serve(fd: int, parent: int) -> None:
    """Serve one pipe: a header and a body in, JSON out. Ends when the pipe does."""
    from llmpipe.executor import die_with_parent

    die_with_parent(parent)
    from llmpipe.ingest.parsers import PARSERS

    _limit_memory(MAX_RSS_BYTES)
    connection = Connection(fd)
    connection.send_bytes(b"{}")
    while True:
        try:
            header, body = json.loads(connection.recv_bytes()), connection.recv_bytes()
        except EOFError:
            return
        try:
            found = PARSERS[header["parser"]](body, **header["arguments"])
        except (MemoryError, RecursionError) as error:
            found = {"error": "memory" if isinstance(error, MemoryError) else "nesting"}
        connection.send_bytes(json.dumps(found).encode())
