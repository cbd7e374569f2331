"""Tell people on stderr what happens: log lines and one progress line per stage. stdout is for results.

    progress = Progress("clean"); progress.update(120, 480, kept=97); progress.close()

A rich bar on a terminal; elsewhere one plain line every 30 s and one at the end.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

PLAIN_INTERVAL_S = 30.0

log = logging.getLogger("llmpipe")


def setup(verbosity: int) -> None:
    """Log to stderr: -1 errors only, 0 info, 1 debug."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel({-1: logging.ERROR, 0: logging.INFO}.get(verbosity, logging.DEBUG))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()


class Progress:
    """One line that says how far a stage is. `update` is cheap: at most ten drawings a second."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._start = self._last = time.monotonic()
        self._line = ""
        self._bar: Any = None
        self._live = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)

    def update(self, done: float, total: float | None = None, **fields: Any) -> None:
        now = time.monotonic()
        self._line = self._text(done, total, fields)
        if self._live:
            if now - self._last >= 0.1 or self._bar is None:
                self._draw(done, total, fields)
                self._last = now
        elif now - self._last >= PLAIN_INTERVAL_S:
            log.info("%s: %s", self.title, self._line)
            self._last = now

    def close(self) -> None:
        """End the line with its last state."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._line:
            log.info("%s: %s in %.1f s", self.title, self._line, time.monotonic() - self._start)
            self._line = ""

    def _text(self, done: float, total: float | None, fields: dict[str, Any]) -> str:
        head = f"{done:,.0f}" + (f"/{total:,.0f} ({done / total:.0%})" if total else "")
        return "  ".join([head, *(f"{k} {_short(v)}" for k, v in fields.items())])

    def _draw(self, done: float, total: float | None, fields: dict[str, Any]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.title, total=total, line="")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total, line=self._text(done, total, fields))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
