"""The one place where errors become messages and exit codes; every command's ``main`` is wrapped by it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

from harness.core.errors import GeepBenchError, format_error

P = ParamSpec("P")


def exit_codes(name: str, *, resumes: bool = False) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Decorate a command's ``main`` so that it returns an exit code instead of raising for bad input.

    :class:`GeepBenchError` is printed on stderr, each line with ``name`` in front, and gives its exit code (2).
    An interrupt gives 130. A closed pipe gives 0. All other exceptions are bugs and keep their traceback.

    Args:
        resumes: the same command again continues from finished work; an interrupt then says so.
    """

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                code = main(*args, **kwargs)
                sys.stdout.flush()
                return code
            except GeepBenchError as error:
                for line in format_error(error).splitlines():
                    print(f"{name}: {line}", file=sys.stderr)
                return error.exit_code
            except KeyboardInterrupt:
                advice = "; run the same command again to resume" if resumes else ""
                print(f"{name}: stopped{advice}", file=sys.stderr)
                return 130
            except BrokenPipeError:  # the reader of a pipe, e.g. head, has ended
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # avoids Python's message at exit
                return 0

        return run

    return decorate
