"""Sanitizers for kernels: launches are recorded, then repeated in a separate process compiled with a sanitizer.

::

    recorder = LaunchRecorder(host.launcher(source), path)
    ...                                            # code that launches kernels through the recorder
    replay(source, path, "thread").raise_if_bad()

Python and torch are not in that process, so reports are about kernels only. This finds what compute-sanitizer finds on a
device (access outside a buffer, races, in shared memory as well), for blocks, warps and barriers as ``shim.h`` runs them.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from harness.core.errors import ConfigError, DeviceError
from harness.kernels import host
from harness.kernels.host import HostLauncher
from harness.kernels.source import Source

SANITIZERS = {"thread": "thread", "address": "address,undefined"}
_OPTIONS = {
    "TSAN_OPTIONS": "exitcode=66:halt_on_error=1",
    "ASAN_OPTIONS": "exitcode=66:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=0",
}
_SCALAR, _BUFFER = 0, 1


class LaunchRecorder:
    """A host launcher that also records every launch and its buffers before it."""

    def __init__(self, launcher: HostLauncher, path: Path) -> None:
        self._launcher = launcher
        self._path = path
        path.write_bytes(b"")

    @property
    def source(self) -> Source:
        return self._launcher.source

    @property
    def device(self) -> torch.device:
        return self._launcher.device

    @property
    def blocks(self) -> int:
        return self._launcher.blocks

    def launch(self, kernel: str, grid: int, block: int, *args: Tensor | int | None) -> None:
        scalars = self.source.arguments(kernel, args, self.device)
        name = kernel.encode()
        parts = [struct.pack("<I", len(name)), name, struct.pack("<III", grid, block, len(args))]
        for given, scalar in zip(args, scalars, strict=True):
            if isinstance(given, Tensor):
                raw = given.view(-1).view(torch.uint8).numpy().tobytes() if given.numel() else b""
                parts += [struct.pack("<IQ", _BUFFER, len(raw)), raw]
            else:
                parts += [struct.pack("<IQ", _SCALAR, scalar.nbytes), scalar.tobytes()]
        with self._path.open("ab") as file:
            file.write(b"".join(parts))
        self._launcher.launch(kernel, grid, block, *args)


@dataclass(frozen=True)
class Report:
    """Result of a replay: whether anything was found, and the report of the sanitizer (or the emulation)."""

    found: bool
    text: str

    def raise_if_bad(self) -> None:
        """Raise RuntimeError with the report if there is one."""
        if self.found:
            raise RuntimeError(self.text)


def replay(
    source: Source, recording: Path, sanitizer: str, *, workers: int = 4, fuzz: bool = False, seed: int = 0,
    flags: Sequence[str] = ("-O1",),
) -> Report:  # fmt: skip
    """Repeat recorded launches under ``"thread"`` or ``"address"`` (with undefined behaviour).

    Raises:
        ConfigError: the kernels or the sanitizer's runtime do not compile.
        DeviceError: there is no compiler, or the sanitizer does not run here.
    """
    reason = problem(sanitizer)
    if reason:
        raise DeviceError(f"kernels: {reason}")
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "replay"
        _compile(program, host.translation_unit(source), sanitizer, [*source.options, *flags])
        done = _run([str(program), str(recording), str(workers), str(int(fuzz)), str(seed)])
    # Exit code 3: the emulation found a deadlock. Other non-zero codes come from the sanitizer.
    return Report(done.returncode != 0, done.stderr or f"exit code {done.returncode}")


@cache
def problem(sanitizer: str) -> str | None:
    """Return why the sanitizer cannot be used here, with advice; ``None`` if it can."""
    missing = host.problem()
    if missing:
        return missing
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name) / "empty"
        empty.write_bytes(b"")
        try:
            _compile(Path(name) / "replay", "", sanitizer, [])
        except ConfigError as error:
            return f"no runtime of the {sanitizer} sanitizer ({error}): install it"
        done = _run([str(Path(name) / "replay"), str(empty), "1", "0", "0"])
    return f"the {sanitizer} sanitizer does not run here: {done.stderr.strip()[:200]}" if done.returncode else None


def _compile(program: Path, unit: str, sanitizer: str, flags: Sequence[str]) -> None:
    options = (f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=all", "-rdynamic", *flags)
    with as_file(files("harness.kernels") / "replay.cpp") as driver:
        host.compile_to(program, unit, options, more=[driver])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    # Some ThreadSanitizers cannot map their shadow memory under strong address randomisation.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run(
        [*fixed, *command], capture_output=True, text=True, check=False, env={**os.environ, **_OPTIONS}
    )
