"""Kernels on the host: the CUDA source compiled by g++ with ``shim.h``. For tests and debugging, not for speed."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from harness.core.digest import check_seal, seal
from harness.core.errors import ConfigError, DeviceError, ResultError
from harness.core.files import content_key, write_folder
from harness.kernels.compiled_code import compiled_code_folder
from harness.kernels.source import Source

FLAGS = (
    "-std=c++17", "-O2", "-g1", "-fPIC", "-pthread", "-fno-strict-aliasing", "-fvisibility=hidden", "-fno-gnu-unique",
    "-Wall", "-Wno-unknown-pragmas",
)  # fmt: skip
LIBRARY = "kernels.so"
_loaded: dict[str, ctypes.CDLL] = {}


class _Plan(ctypes.Structure):
    """``shim::Plan``."""

    _fields_ = (
        ("grid", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("fuzz", ctypes.c_uint),
        ("workers", ctypes.c_uint),
        ("seed", ctypes.c_uint64),
    )


def compiler() -> list[str]:
    """Return the C++ compiler's command: ``$CXX``, else g++, else c++.

    Raises:
        DeviceError: there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["g++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    looked = chosen[0] if chosen else "g++ or c++"
    raise DeviceError(f"host kernels: no C++ compiler ({looked}) found: install g++, or set CXX to one")


def problem() -> str | None:
    """Return why kernels cannot be compiled for the host here, with advice; ``None`` if they can."""
    try:
        compiler()
    except DeviceError as error:
        return str(error)
    return None


@cache
def _version(command: tuple[str, ...]) -> str:
    return subprocess.run(
        [*command, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout


def translation_unit(source: Source) -> str:
    """Return the source as C++ with a launch function per kernel: ``const char* launch_NAME(const Plan*, void** args)``.

    ``args[i]`` points to the i-th argument, as for ``cuLaunchKernel``.
    """
    lines = ['#include "shim.h"', f'#line 1 "{source.name}"', source.text, '#line 1 "launchers"']
    for kernel, parameters in source.kernels.items():
        values = ", ".join(f"*static_cast<{each.declaration}*>(args[{i}])" for i, each in enumerate(parameters))
        lines += [
            'extern "C" __attribute__((visibility("default")))',
            f"const char* launch_{kernel}(const shim::Plan* plan, [[maybe_unused]] void** args) {{",
            f"  return shim::launch(*plan, [=] {{ {kernel}({values}); }});",
            "}",
        ]
    return "\n".join(lines) + "\n"


def compile_to(output: Path, unit: str, flags: Sequence[str], *, more: Sequence[Path] = ()) -> None:
    """Compile one translation unit (and further C++ files) to ``output``.

    Raises:
        ConfigError: the compiler failed; its first error is quoted.
        DeviceError: there is no compiler.
    """
    written = output.with_name("kernels.cpp")
    written.write_text(unit, encoding="utf-8")
    include = str(files("harness.kernels"))
    command = [*compiler(), *FLAGS, *flags, f"-I{include}", str(written), *map(str, more), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise ConfigError(
            f"host kernels: {command[0]} failed: {errors[0].strip()}: fix the source or choose another CXX"
        )


def build(source: Source, flags: Sequence[str] = ()) -> Path:
    """Return the shared library of a source, from the cache (keyed by source, shim, flags and compiler) or compiled now.

    A library is code, so one that another user could have written is not loaded: then it is compiled into a private folder.

    Raises:
        ConfigError: the compiler failed.
        WriteError: the cache cannot be written.
        DeviceError: there is no compiler.
    """
    folder = compiled_code_folder(f"kernels/{_key(source, flags)}", LIBRARY)
    damaged = False
    if folder.is_dir():
        try:
            check_seal(folder)
        except ResultError as error:
            print(f"{error}; compiling the kernels again", file=sys.stderr)
            damaged = True
    if damaged or not folder.is_dir():
        unit, options = translation_unit(source), ("-shared", *source.options, *flags)

        def fill(place: Path) -> None:
            compile_to(place / LIBRARY, unit, options)
            seal(place)

        write_folder(folder, fill, replace=damaged)
    return folder / LIBRARY


def _key(source: Source, flags: Sequence[str]) -> str:
    shim = (files("harness.kernels") / "shim.h").read_text(encoding="utf-8")
    command = tuple(compiler())
    sealed = 1  # libraries without checksums have other keys
    return content_key(
        sealed, translation_unit(source), source.options, shim, FLAGS, list(flags), command, _version(command)
    )


@dataclass
class HostLauncher:
    """A :class:`harness.kernels.Launcher` on the host.

    Attributes:
        workers: OS threads that blocks are shared among.
        fuzz: whether threads of a block switch at random around atomics.
        seed: of the fuzzing, raised by each launch; with one worker, the same seed gives the same schedule.
    """

    source: Source
    library: ctypes.CDLL
    workers: int = 1
    fuzz: bool = False
    seed: int = 0
    blocks: int = 16
    device: torch.device = torch.device("cpu")

    def launch(self, kernel: str, grid: int, block: int, *args: Tensor | int | None) -> None:
        values = self.source.arguments(kernel, args, self.device)
        # NumPy scalars have no address: copy the bytes and keep them alive for the call.
        held = [ctypes.create_string_buffer(value.tobytes(), value.nbytes) for value in values]
        pointers = (ctypes.c_void_p * max(len(held), 1))(*(ctypes.addressof(each) for each in held))
        plan = _Plan(grid, block, self.fuzz, self.workers, self.seed & (2**64 - 1))
        self.seed += 1
        function = self.library[f"launch_{kernel}"]
        function.restype = ctypes.c_char_p
        failure = function(ctypes.byref(plan), pointers)
        if failure is not None:
            raise RuntimeError(f"{self.source.name}: {kernel}: {failure.decode()}")


def launcher(
    source: Source, *, workers: int = 1, fuzz: bool = False, seed: int = 0, flags: Sequence[str] = ()
) -> HostLauncher:
    """Return a launcher of the source on the host; libraries are loaded once per process.

    Raises:
        ConfigError: the compiler rejected the source.
        DeviceError: there is no compiler.
    """
    key = _key(source, flags)
    if key not in _loaded:
        _loaded[key] = ctypes.CDLL(str(build(source, flags)))
    return HostLauncher(source, _loaded[key], workers, fuzz, seed)
