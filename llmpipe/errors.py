"""Say what went wrong in a way that a person can act on: a message, a hint, an exit code.

    raise InputError(f"{path}: no manifest.json", hint="llmpipe ingest PATH --output DIR makes a directory of documents")

Every error that a user can cause is an `LlmpipeError`; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

OK, FAILED, USAGE, INPUT, LOCKED, INTERRUPTED, PIPE, TERMINATED = 0, 1, 2, 3, 75, 130, 141, 143


class LlmpipeError(Exception):
    """Stop with a message that names the bad value and the place, and a hint that names the next command."""

    exit_code = FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self):  # errors cross process borders; the default would drop the hint
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[LlmpipeError], message: str, hint: str | None) -> LlmpipeError:
    return kind(message, hint=hint)


class UsageError(LlmpipeError):
    """The command line or a config is wrong."""

    exit_code = USAGE


class InputError(LlmpipeError):
    """An input is missing, corrupt, or of another kind than the stage reads."""

    exit_code = INPUT


class LockedError(LlmpipeError):
    """Another run holds this directory; try again later."""

    exit_code = LOCKED


class Terminated(LlmpipeError):
    """SIGTERM arrived and the state is saved; the same command goes on."""

    exit_code = TERMINATED
