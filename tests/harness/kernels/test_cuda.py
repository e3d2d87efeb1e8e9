"""Kernels on a CUDA device, and what is said where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from harness.errors import DeviceError
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
    """The answer is remembered per process; these tests change the facts."""
    cuda.problem.cache_clear()
    yield
    cuda.problem.cache_clear()


def fake_cupy(count: object) -> SimpleNamespace:
    runtime = SimpleNamespace(CUDARuntimeError=RuntimeErrorOfCupy, getDeviceCount=count)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))


@pytest.mark.parametrize(("device", "cupy", "word"), [
    (False, None, "torch sees no CUDA device"),
    (True, None, "CuPy cannot be imported.*pip install"),
    (True, fake_cupy(refuse), "insufficient.*update the driver"),
    (True, fake_cupy(lambda: 0), "CuPy sees no CUDA device"),
])  # fmt: skip
def test_what_is_missing_is_one_clear_line(
    device: bool, cupy: object, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No device, no CuPy, an old driver: each has its own message with the way out, and a launcher is refused with it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert "\n" not in str(cuda.problem())
    with pytest.raises(DeviceError, match=word):
        cuda.launcher(SOURCE)


def test_a_device_that_works_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch, CuPy and a device there is nothing to say."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(lambda: 1))
    assert cuda.problem() is None


@pytest.mark.gpu
def test_a_kernel_runs_in_order_with_torch_on_its_current_stream() -> None:
    """On the default and on a side stream, a launch sees what torch wrote before and torch sees what it wrote."""
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
    """NVRTC's complaint is quoted."""
    if cuda.problem():
        pytest.skip(str(cuda.problem()))
    bad = Source("bad.cu", 'extern "C" __global__ void f() { nonsense; }')
    with pytest.raises(DeviceError, match="bad.cu does not compile"):
        cuda.launcher(bad).launch("f", 1, 32)
