"""Say what went wrong in a way that a person can act on: a message, a hint, an exit code.

    raise InputError(f"{path}: no manifest.json", hint="llmpipe ingest PATH --output DIR makes a directory of documents")

Every error that a user can cause is an `LlmpipeError`; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

import errno

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


_FULL = ("no space left on device", "disk is full", "os error 28")
_TOO_LARGE = ("file too large", "os error 27")


def describe(error: Exception) -> LlmpipeError | None:
    """Turn a full disk or a file-size limit, in the words of whichever library met it, into an error with a way out."""
    number, words = getattr(error, "errno", None), str(error).lower()
    where = f" while writing {error.filename}" if getattr(error, "filename", None) else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or any(w in words for w in _FULL):
        return LlmpipeError(f"no space left on the disk{where}", hint="free some space and run the same command again; what was finished is kept")
    if number == errno.EFBIG or any(w in words for w in _TOO_LARGE):
        return LlmpipeError(f"a file would pass the file-size limit{where}", hint="raise it (ulimit -f) and run the same command again; what was finished is kept")
    return None
