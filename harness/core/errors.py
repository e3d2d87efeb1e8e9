"""Errors that the input causes.

::

    GeepBenchError            exit code 2; the message says what, where and how to correct it
    ├── UnknownNameError      no method, dataset, profile or backbone has this name
    ├── DataError             a dataset folder, file, column or label cannot be used
    ├── BackboneError         a checkpoint, config or tokenizer cannot be used
    ├── DeviceError           the machine lacks this device, or memory
    ├── ConfigError           a profile, option or hyper-parameter is invalid
    │   ├── SettingsError     several of them; one line per problem
    │   └── MethodError       one method cannot be used; a run continues with the others
    └── ResultError           a run folder or result file cannot be read or written
        └── WriteError        a file or folder cannot be written: the run ends
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

from harness.core.names import clean


class GeepBenchError(Exception):
    """The input cannot be used. The message says how to correct it."""

    exit_code = 2


class UnknownNameError(GeepBenchError):
    """A name is not registered; the message suggests the nearest ones.

    Args:
        kind: what was looked for, e.g. ``"method"``.
        name: the unknown name.
        known: all valid names.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"unknown {kind} '{name}': {hint}known: {', '.join(known) or 'none'}")


class DataError(GeepBenchError):
    """A dataset cannot be used."""


class BackboneError(GeepBenchError):
    """A checkpoint, its config or its tokenizer cannot be used."""


class DeviceError(GeepBenchError):
    """The machine lacks this device, or the device has too little memory."""


class ConfigError(GeepBenchError):
    """A profile, an option or a hyper-parameter is invalid."""


class SettingsError(ConfigError):
    """Invalid settings.

    Attributes:
        problems: one line each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MethodError(ConfigError):
    """One method cannot be used: its plug-in, its answers or something it needs. Other methods are not affected."""


class ResultError(GeepBenchError):
    """A run folder or a result file cannot be read or written."""


class WriteError(ResultError):
    """A file or folder cannot be written: the disk is full, or the folder is not writable."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Libraries that are not written in Python raise errors of their own, with the text of the system.
_FULL_TEXT = re.compile(rf"No space left on device|os error ({'|'.join(map(str, _FULL))})\b")


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or the one that caused it, says that a disk, a quota or the largest file size is full."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or _FULL_TEXT.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def is_fatal(error: BaseException) -> bool:
    """Return whether the run must end because nothing more can be stored. Other errors only fail their own cells."""
    return isinstance(error, WriteError) or is_disk_full(error)


def first_line(error: BaseException) -> str:
    """Return the first line of the message, or the error's type if it has none."""
    return clean((str(error).strip() or type(error).__name__).splitlines()[0])


def format_error(error: BaseException) -> str:
    """Return the message in one line, or one line per problem; errors of other libraries keep their type's name."""
    if isinstance(error, SettingsError):
        return "\n".join(clean(" ".join(problem.split())) for problem in error.problems)
    if isinstance(error, GeepBenchError):
        return clean(" ".join(str(error).split()))
    return clean(f"{type(error).__name__}: {error}".splitlines()[0])
