"""One run at a time in a run folder: two would measure the same cells and disturb each other's times."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from harness.core.errors import ResultError, WriteError

LOCK = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    The system releases it when the process ends, however it ends. Where a file system has no locks, a file with the number of the
    process stands for it, and that of a process of this machine that has ended is ignored.

    Raises:
        ResultError: another run holds it; the message names its process.
        WriteError: the folder cannot be written.
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ResultError(
            f"{folder} is in use by another run ({_holder(path)}): wait until it ends, or choose another folder with --out"
        ) from error
    except OSError as error:
        raise WriteError(f"cannot lock {path}: {error.strerror}: choose another folder with --out") from error
    try:
        own = not isinstance(lock, SoftFileLock)  # whose file says it already, and disappears at the end
        if own:
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", encoding="utf-8")
        yield
        if own:
            path.write_text("", encoding="utf-8")
    finally:
        lock.release()


def _holder(path: Path) -> str:
    lines: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
    return f"process {lines[0]} on {lines[1]}" if len(lines) > 1 else "its process is unknown"
