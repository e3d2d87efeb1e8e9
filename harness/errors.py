"""What goes wrong because of an input, told to a person.

::

    GeepBenchError            exit code 2; one line: what, where, how to mend it
    ├── UnknownNameError      a method, dataset, profile or backbone that nobody registered
    ├── DataError             a dataset folder, file, column or label that cannot be used
    ├── BackboneError         a checkpoint, config or tokenizer that cannot be used
    ├── DeviceError           a device that this machine does not have, or too little memory
    ├── ConfigError           a profile, option or hyper-parameter that makes no sense
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


class ResultError(GeepBenchError):
    """A run folder or a result file that cannot be read or written."""
