"""Argument types for argparse. Each reads one text and rejects it in one line that quotes it and names what is allowed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from harness.core.errors import ConfigError

T = TypeVar("T")


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises :class:`ConfigError` instead of printing its usage and exiting."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def path(text: str) -> Path:
    """Read a path; ``~`` is the home folder, also after ``=``, where a shell leaves it."""
    try:
        text.encode()  # it is shown in the report
        return Path(text).expanduser()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8: rename the folder") from None
    except RuntimeError as error:  # no such user
        raise argparse.ArgumentTypeError(f"'{text}': {error}") from None


def whole_number(least: int) -> Callable[[str], int]:
    """Return a type that reads a whole number of at least ``least``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a whole number of at least {least}")
        return number

    return read


def positive_number(text: str) -> float:
    """Read a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a number above 0")
    return number


def comma_separated(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a type that reads ``"a,b"`` part by part; duplicates are dropped, the order is kept."""
    return lambda text: list(dict.fromkeys(read(part.strip()) for part in text.split(",")))


def one_of(*known: str) -> Callable[[str], str]:
    """Return a type that accepts only these words."""

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"'{text}' is not one of {', '.join(known)}")
        return text

    return read


def names(text: str) -> list[str]:
    """Read ``"a,b"`` as names; empty parts and duplicates are dropped."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("give at least one name")
    return list(dict.fromkeys(found))
