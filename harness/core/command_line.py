"""The one place where errors become messages and exit codes; every command's ``main`` is wrapped by it."""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import ParamSpec

from harness.core.errors import GeepBenchError, format_error, is_disk_full

P = ParamSpec("P")

FULL = "free space on the disk that the output goes to, and on that of temporary files, then run the same command again"
INTERRUPTED = 130


def exit_codes(name: str, *, resumes: bool = False) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a command's ``main`` so that it returns an exit code instead of raising for bad input.

    :class:`GeepBenchError` is printed on stderr, each line with ``name`` in front, and gives its exit code (2). A full disk and
    too little memory do the same. An interrupt (Ctrl+C, SIGTERM, SIGHUP) gives 130. A closed pipe gives 0. All other exceptions
    are bugs and keep their traceback. Characters that the terminal cannot encode are written as escapes.

    Args:
        resumes: the same command again continues from finished work; an interrupt then says so.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="backslashreplace")
            try:
                with _termination_interrupts():
                    code = main(*args, **kwargs)
                    sys.stdout.flush()
                return code
            except KeyboardInterrupt:
                print(f"{name}: stopped{'; run the same command again to resume' if resumes else ''}", file=sys.stderr)
                return INTERRUPTED
            except BrokenPipeError:  # the reader of a pipe, e.g. head, has ended
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # avoids Python's message at exit
                return 0
            except Exception as error:
                message = _message(error)
                if message is None:
                    raise
                from harness.core.names import clean  # imports pydantic, which --help does not need

                for line in message.splitlines():
                    print(f"{name}: {clean(line)}", file=sys.stderr)
                return GeepBenchError.exit_code

        return run

    return decorate


def _message(error: Exception) -> str | None:
    """Return what to print for an error, ``None`` for a bug."""
    if isinstance(error, GeepBenchError):
        return format_error(error)
    if is_disk_full(error):
        return f"nothing more can be written ({format_error(error)}): {FULL}"
    if isinstance(error, MemoryError):
        return f"out of memory ({format_error(error)}): use less data (--max-train), smaller batches, or a machine with more"
    return None


@contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise ``KeyboardInterrupt``, unless they are ignored or handled already."""
    changed = []
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for kind in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(kind) is signal.SIG_DFL:
                signal.signal(kind, signal.default_int_handler)
                changed.append(kind)
    try:
        yield
    finally:
        for kind in changed:
            signal.signal(kind, signal.SIG_DFL)


def hide_interrupts() -> None:
    """Print no traceback if an interrupt comes before a command's ``main`` runs, while modules are imported."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped", file=sys.stderr)
        else:
            show(kind, error, trace)

    sys.excepthook = hook
