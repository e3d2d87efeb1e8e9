"""A kernel source and its kernels.

A source is CUDA C++ without headers, so NVRTC compiles it directly. A strict parser finds the kernels: it accepts
``extern "C" __global__ void name(parameters)`` with scalars of, and pointers to, the types in :data:`TYPES`, and rejects all else.
Both launchers convert and check arguments by its result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import ConfigError

TYPES: Mapping[str, type[np.signedinteger] | type[np.unsignedinteger]] = {
    "i64": np.int64,
    "u64": np.uint64,
    "int": np.int32,
    "u32": np.uint32,
    "i16": np.int16,
    "u16": np.uint16,
    "u8": np.uint8,
}
"""Types of parameters; a source declares those that C++ does not have. A tensor may be of either sign."""

_SIZES = {
    torch.int64: 8, torch.uint64: 8, torch.int32: 4, torch.uint32: 4,
    torch.int16: 2, torch.uint16: 2, torch.uint8: 1, torch.int8: 1,
}  # fmt: skip
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\(\s*\d+\s*\)\s+)?(\w+)\s*\(([^()]*)\)\s*\{'
)
_PARAMETER = re.compile(r"(?:const\s+)?(\w+)\s*(\*?)\s*(?:__restrict__\s+)?(\w+)")


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter: a scalar of ``type``, or a pointer to it."""

    name: str
    type: str
    pointer: bool

    @property
    def declaration(self) -> str:
        return f"{self.type}{'*' if self.pointer else ''}"

    def convert(self, value: Tensor | int | None, device: torch.device) -> np.generic:
        """Return the argument to pass, an address or a scalar, in the bytes that the kernel reads.

        Raises:
            TypeError: a tensor on another device, of another width or not contiguous, or a scalar instead of a tensor.
            OverflowError: the type cannot hold the scalar.
        """
        if not self.pointer:
            if isinstance(value, Tensor) or value is None:
                raise TypeError(f"parameter {self.name} is a scalar {self.type}, not {type(value).__name__}")
            info = np.iinfo(TYPES[self.type])
            if not info.min <= value <= info.max:
                raise OverflowError(f"parameter {self.name}={value} does not fit {self.type}")
            return TYPES[self.type](value)
        if value is None:
            return np.uint64(0)
        if not isinstance(value, Tensor):
            raise TypeError(f"parameter {self.name} is a pointer, not {type(value).__name__}")
        if _SIZES.get(value.dtype) != np.dtype(TYPES[self.type]).itemsize:
            raise TypeError(f"parameter {self.name} points to {self.type}, not to {value.dtype}")
        if value.device != device or not value.is_contiguous():
            raise TypeError(f"parameter {self.name} must be contiguous on {device}, not {value.device}")
        return np.uint64(value.data_ptr())


@dataclass(frozen=True)
class Source:
    """One translation unit.

    Attributes:
        name: file name, for messages.
        text: CUDA C++.
        defines: macros, the same for every compiler.
    """

    name: str
    text: str
    defines: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, package: str, name: str, **defines: int) -> Source:
        """Read the file ``name`` from the data of ``package``."""
        return cls(name, (files(package) / name).read_text(encoding="utf-8"), defines)

    @property
    def options(self) -> tuple[str, ...]:
        """The macros as compiler options."""
        return tuple(f"-D{name}={value}" for name, value in sorted(self.defines.items()))

    @cached_property
    def kernels(self) -> dict[str, tuple[Parameter, ...]]:
        """Parameters by kernel.

        Raises:
            ConfigError: the parser does not accept a declaration.
        """
        text = _COMMENT.sub(" ", self.text)
        found: dict[str, tuple[Parameter, ...]] = {}
        for name, parameters in _KERNEL.findall(text):
            if name in found:
                raise ConfigError(f"{self.name}: kernel {name} is declared twice: give each one definition")
            found[name] = tuple(self._parameter(name, each) for each in parameters.split(",") if parameters.strip())
        if len(found) != text.count("__global__"):
            raise ConfigError(
                f"{self.name}: {text.count('__global__')} kernels but {len(found)} understood:"
                ' write each as extern "C" __global__ void name(parameters) {'
            )
        return found

    def arguments(self, kernel: str, given: tuple[Any, ...], device: torch.device) -> list[np.generic]:
        """Convert arguments for the kernel; see :meth:`Parameter.convert`."""
        parameters = self.kernels[kernel]
        if len(parameters) != len(given):
            raise TypeError(f"{self.name}: {kernel} takes {len(parameters)} arguments, not {len(given)}")
        try:
            return [parameter.convert(value, device) for parameter, value in zip(parameters, given, strict=True)]
        except (TypeError, OverflowError) as error:
            raise type(error)(f"{self.name}: {kernel}: {error}") from None

    def _parameter(self, kernel: str, text: str) -> Parameter:
        match = _PARAMETER.fullmatch(text.strip())
        if match is None or match[1] not in TYPES:
            raise ConfigError(
                f"{self.name}: parameter '{' '.join(text.split())}' of kernel {kernel} is not understood:"
                f" give a scalar of or a pointer to {', '.join(TYPES)}"
            )
        return Parameter(match[3], match[1], bool(match[2]))
