"""Write files that are either whole or absent, hash them, and lock directories.

    with atomic_path(out / "part-00000-00000.parquet") as tmp:
        write(tmp)

Nothing here knows what a document or a token is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmpipe.errors import InputError, LockedError

MAX_JSON_BYTES = 1 << 30


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success fsync it, rename it and fsync the directory; on error remove it.

    The temporary name ends in `.tmp` and holds the process id, so that a killed writer's remains never collide
    with a new writer's and are swept by `remove_stale_tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        with suppress(OSError):
            tmp.unlink()
        raise
    fsync_dir(path.parent)


def atomic_write(path: Path, data: bytes | str) -> None:
    with atomic_path(path) as tmp:
        tmp.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write sorted, unescaped UTF-8, so that equal values give equal bytes."""
    atomic_write(path, dump_json(value) + "\n")


def dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1)


def read_json(path: Path) -> Any:
    """Read a JSON file, refusing what is too large or broken with an error that names it."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes is too large for a JSON file")
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})", hint="the file was cut or edited; restore it or rebuild") from None


def fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_stale_tmp(directory: Path) -> None:
    """Remove what killed writers left in `directory` (not below it). Call only under its lock."""
    for entry in directory.glob(".*.tmp"):
        with suppress(OSError):
            entry.unlink()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Hash a JSON value in its canonical form."""
    canonical = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def digest_path(path: Path) -> str:
    """Hash the content of a file, or of every file below a directory with its relative name."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest_of([[str(p.relative_to(path)), sha256_file(p)] for p in files])


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def safe_name(text: str) -> str:
    """Make a file name of any text: no separators, no leading dot, at most 100 characters."""
    return _UNSAFE.sub("-", text).lstrip(".-")[:100] or "unnamed"


def child(directory: Path, name: str) -> Path:
    """Join a name that came from a file or a server; refuse one that would leave `directory`."""
    path = directory / name
    if os.path.isabs(name) or not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{name!r} would lie outside {directory}")
    return path


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; raise `LockedError` at once when another process has it.

    A POSIX record lock (`fcntl.lockf`), not `flock`: a forked child doesn't inherit it, so a SIGKILL of the holder
    frees it even while a child still lives. It dies when any descriptor of the file closes: nothing else opens it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise LockedError(f"{directory} is in use by another run (process {holder})", hint="wait for it to end, or choose another --output") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
