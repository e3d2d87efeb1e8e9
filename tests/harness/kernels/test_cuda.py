"""Kernels on a CUDA device, and the messages without one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.errors import DeviceError
from harness.kernels import Source, cuda

SOURCE = Source(
    "test.cu", 'extern "C" __global__ void twice(int* x, int n) { int i = threadIdx.x; if (i < n) x[i] *= 2; }'
)


class RuntimeErrorOfCupy(RuntimeError):
    """Stands for CUDARuntimeError."""


def refuse() -> int:
    raise RuntimeErrorOfCupy("cudaErrorInsufficientDriver: CUDA driver version is insufficient\nmore")


@pytest.fixture(autouse=True)
def _ask_again() -> Iterator[None]:
    """Clear the remembered answer, because these tests change the facts."""
    for cached in (cuda.problem, cuda._module):
        cached.cache_clear()
    yield
    for cached in (cuda.problem, cuda._module):
        cached.cache_clear()


def raising(error: Exception) -> Callable[..., Any]:
    """Return a function that only raises ``error``."""

    def act(*_: object, **__: object) -> None:
        raise error

    return act


def fake_cupy(count: Callable[[], int], compiled: Callable[..., Any] = lambda name: None) -> SimpleNamespace:
    """Provide the used part of CuPy; ``compiled`` stands for ``RawModule.get_function``."""
    runtime = SimpleNamespace(CUDARuntimeError=RuntimeErrorOfCupy, getDeviceCount=count)
    return SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime), RawModule=lambda **_: SimpleNamespace(get_function=compiled)
    )


NO_NVRTC = RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: no such file\nmore")
OLD_DRIVER = RuntimeError(
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX was compiled with an unsupported toolchain."
)
FULL = RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")


@pytest.mark.parametrize(("device", "cupy", "word"), [
    (False, None, "torch sees no CUDA device"),
    (True, None, "CuPy cannot be imported.*pip install"),
    (True, fake_cupy(refuse), "insufficient.*update the driver"),
    (True, fake_cupy(lambda: 0), "CuPy sees no CUDA device"),
    (True, fake_cupy(lambda: 1, raising(NO_NVRTC)), r"failed to load libnvrtc.*geep-bench\[cuda\]"),
    (True, fake_cupy(lambda: 1, raising(OLD_DRIVER)), "UNSUPPORTED_PTX.*a driver for its CUDA version"),
    (True, fake_cupy(lambda: 1, raising(FULL)), "no memory on the device.*free memory"),
])  # fmt: skip
def test_a_missing_part_is_one_clear_line(
    device: bool, cupy: object, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing device, CuPy or NVRTC and an old driver each have a message with the remedy, for a launcher as well."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert "\n" not in str(cuda.problem())
    with pytest.raises(DeviceError, match=word):
        cuda.launcher(SOURCE)


@pytest.mark.parametrize(
    "error", [ImportError("numpy 3"), OSError("libcuda.so.1: no such file"), RuntimeError("broken")]
)
def test_a_cupy_that_fails_to_import_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message quotes the reason, whatever the import raises."""
    find = SimpleNamespace(find_spec=lambda name, *_: raising(error)() if name == "cupy" else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [find, *sys.meta_path])
    assert f"CuPy cannot be imported ({error})" in str(cuda.problem())


def test_a_working_device_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch, CuPy, NVRTC and a device, no problem is reported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(lambda: 1))
    assert cuda.problem() is None


@pytest.mark.parametrize("protocol", [True, False])
def test_a_launch_uses_torchs_current_stream(protocol: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy receives the stream by the stream protocol or, in older versions, by the raw handle; no device is needed."""
    log: list[tuple] = []

    class Entered:
        def __init__(self, *what: object) -> None:
            self.what = what

        def __enter__(self) -> None:
            log.append(self.what)

        def __exit__(self, *_: object) -> None:
            log.append(("left", *self.what))

    class Module:
        def __init__(self, code: str, options: tuple[str, ...]) -> None:
            log.append(("compile", code, options))

        def get_function(self, name: str) -> Callable[..., None]:
            def run(*args: object) -> None:
                if full:
                    raise RuntimeErrorOfCupy("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
                log.append((name, *args))

            return run

    stream = SimpleNamespace(cuda_stream=7, **({"__cuda_stream__": lambda: (0, 7)} if protocol else {}))
    streams = SimpleNamespace(from_external=lambda given: Entered("protocol", given is stream)) if protocol else object
    own = fake_cupy(lambda: 1).cuda.runtime
    full: list[bool] = []
    fake = SimpleNamespace(
        RawModule=Module,
        cuda=SimpleNamespace(
            runtime=own,
            Stream=streams,
            ExternalStream=lambda handle, index: Entered("handle", handle, index),
            Device=lambda index: Entered("device", index),
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=3))
    monkeypatch.setattr(torch.cuda, "device", lambda device: Entered("torch device", str(device)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    launcher = cuda.launcher(SOURCE, torch.device("cuda", 1))
    log.clear()
    assert (launcher.device, launcher.blocks) == (torch.device("cuda", 1), 3 * cuda.BLOCKS_PER_PROCESSOR)
    for _ in range(2):
        launcher.launch("twice", 5, 64, None, 9)
    on = ("protocol", True) if protocol else ("handle", 7, 1)
    assert [entry for entry in log if entry[0] == "compile"] == [("compile", SOURCE.text, ("-std=c++17",))]
    launches = [entry for entry in log if entry[0] == "twice"]
    assert launches == [("twice", (5,), (64,), (0, 9))] * 2
    assert [value.dtype for value in launches[0][3]] == [np.uint64, np.int32]
    before = [entry for entry in log[: log.index(launches[0])] if entry[0] != "compile"]
    assert before == [("torch device", "cuda:1"), ("device", 1), on]
    assert log[-3:] == [("left", *on), ("left", "device", 1), ("left", "torch device", "cuda:1")]
    full.append(True)
    with pytest.raises(torch.OutOfMemoryError, match="no memory on the device to load or launch twice"):
        launcher.launch("twice", 5, 64, None, 9)


@pytest.mark.gpu
def test_a_kernel_runs_in_order_with_torch_on_its_current_stream() -> None:
    """On the default and on a side stream, kernel and torch see each other's writes in order."""
    if cuda.problem():
        pytest.skip(str(cuda.problem()))
    launcher = cuda.launcher(SOURCE)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            x = torch.ones(1 << 20, dtype=torch.int32, device="cuda").cumsum(0, dtype=torch.int32)
            launcher.launch("twice", 1, 128, x, 100)
            total = int(x[:200].sum())
        assert total == 2 * 5050 + sum(range(101, 201))


@pytest.mark.gpu
def test_a_source_that_does_not_compile_is_one_clear_line() -> None:
    """The error quotes NVRTC's message."""
    if cuda.problem():
        pytest.skip(str(cuda.problem()))
    bad = Source("bad.cu", 'extern "C" __global__ void f() { nonsense; }')
    with pytest.raises(DeviceError, match="bad.cu does not compile"):
        cuda.launcher(bad).launch("f", 1, 32)
