"""Kernel sources are parsed, and arguments are checked against them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.core.errors import ConfigError
from harness.kernels import Parameter, Source

CPU = torch.device("cpu")
TEXT = """
// extern "C" __global__ void commented(int a) {
extern "C" __global__ void
    one(const u64* __restrict__ keys, u32 *counts,  // the
        i64 size, int /* of */ layers) { for (;;) {} }
extern "C" __global__ void __launch_bounds__(128) none() {}
"""


def test_kernels_and_their_parameters_are_found() -> None:
    """Comments, line breaks and launch bounds do not hide a kernel."""
    assert Source("a.cu", TEXT).kernels == {
        "one": (
            Parameter("keys", "u64", True),
            Parameter("counts", "u32", True),
            Parameter("size", "i64", False),
            Parameter("layers", "int", False),
        ),
        "none": (),
    }


@pytest.mark.parametrize(("text", "word"), [
    ('extern "C" __global__ void f(float x) {}', "'float x' of kernel f"),
    ('extern "C" __global__ void f(u64** x) {}', "x' of kernel f"),
    ('extern "C" __global__ void f(u64 x[4]) {}', "x\\[4\\]"),
    ('extern "C" __global__ void f(u64) {}', "'u64'"),
    ("__global__ void f(u64 x) {}", "1 kernels but 0 understood"),
    ('extern "C" __global__ void f(void (*g)(int)) {}', "1 kernels but 0"),
    ('extern "C" __global__ void f() {} extern "C" __global__ void f() {}', "twice"),
])  # fmt: skip
def test_unsupported_declarations_are_rejected(text: str, word: str) -> None:
    """The message names the kernel and the parameter."""
    with pytest.raises(ConfigError, match=word):
        _ = Source("a.cu", text).kernels


def test_arguments_become_addresses_and_scalars_of_their_width() -> None:
    """A tensor of either signedness is passed as its address, None as the null pointer, a number in its declared width."""
    keys, counts = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
    found = Source("a.cu", TEXT).arguments("one", (keys, counts, 1 << 40, -7), CPU)
    assert found == [keys.data_ptr(), counts.data_ptr(), 1 << 40, -7]
    assert [value.dtype for value in found] == [np.uint64, np.uint64, np.int64, np.int32]
    assert Source("a.cu", TEXT).arguments("one", (None, counts, 0, 0), CPU)[0] == 0


@pytest.mark.parametrize(("place", "value", "word"), [
    (0, torch.zeros(3, dtype=torch.int32), "keys points to u64"),
    (0, torch.zeros(3), "float32"),
    (0, torch.zeros(2, 6, dtype=torch.int64)[:, ::2], "contiguous"),
    (0, torch.zeros(3, dtype=torch.int64, device="meta"), "on cpu"),
    (0, 5, "keys is a pointer"),
    (2, torch.zeros(1, dtype=torch.int64), "size is a scalar"),
    (2, None, "size is a scalar"),
    (3, 1 << 31, "layers=2147483648 does not fit int"),
])  # fmt: skip
def test_unsuitable_arguments_are_rejected(place: int, value: object, word: str) -> None:
    """The message names source, kernel and parameter, so no kernel reads memory of a wrong type."""
    good: list = [torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int32), 1, 1]
    good[place] = value
    with pytest.raises((TypeError, OverflowError), match=f"a.cu: one: .*{word}"):
        Source("a.cu", TEXT).arguments("one", tuple(good), CPU)
    with pytest.raises(TypeError, match="takes 4 arguments, not 1"):
        Source("a.cu", TEXT).arguments("one", (1,), CPU)


def test_sources_of_packages_are_found_with_their_macros() -> None:
    """Kernel files are package data, and macros become compiler options."""
    source = Source.of("geep.exit_table", "exit_table.cu", WIDTH=28)
    assert {"insert", "freeze", "predict"} <= set(source.kernels)
    assert source.options == ("-DWIDTH=28",)
