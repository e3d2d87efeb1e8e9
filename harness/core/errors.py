"""What goes wrong because of an input, told to a person.

::

    GeepBenchError            exit code 2; one line: what, where, how to mend it
    ├── UnknownNameError      a method, dataset, profile or backbone that nobody registered
    ├── DataError             a dataset folder, file, column or label that cannot be used
    ├── BackboneError         a checkpoint, config or tokenizer that cannot be used
    ├── DeviceError           a device that this machine does not have, or too little memory
    ├── ConfigError           a profile, option or hyper-parameter that makes no sense
    │   └── MethodError       one method cannot be used, for which a grid goes on with the others
    └── ResultError           a run folder or result file that cannot be read or written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeepBenchError(Exception):
    """An input that cannot be used. Its message is one line and says how to mend it."""

    exit_code = 2


class UnknownNameError(GeepBenchError):
    """A name that is not registered; the message suggests the nearest ones.

    Args:
        kind: what was looked for, e.g. ``"method"``.
        name: what was asked.
        known: every name that would have been accepted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        super().__init__(f"unknown {kind} '{name}': {hint}known: {', '.join(known) or 'none'}")


class DataError(GeepBenchError):
    """A dataset that cannot be used."""


class BackboneError(GeepBenchError):
    """A checkpoint, its config or its tokenizer cannot be used."""


class DeviceError(GeepBenchError):
    """A device that this machine does not have, or that has too little memory."""


class ConfigError(GeepBenchError):
    """A profile, an option or a hyper-parameter that makes no sense."""


class MethodError(ConfigError):
    """One method cannot be used here: its plug-in, its answers, something it needs. The cells of others are not concerned."""


class ResultError(GeepBenchError):
    """A run folder or a result file that cannot be read or written."""


def concerns_all(error: BaseException) -> bool:
    """Whether a person has to mend something before it makes sense to go on; else one method failed, and others may not."""
    return isinstance(error, GeepBenchError) and not isinstance(error, MethodError)


def told(error: BaseException) -> str:
    """An error in one line: its message, and its type where that is none of ours."""
    if isinstance(error, GeepBenchError):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {error}".splitlines()[0]
