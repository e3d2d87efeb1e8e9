"""Huge pages change no contents and no addresses; freed memory stays with the process until it is released."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.encoder.device_kernels.host_memory import keep_freed_memory, use_huge_pages

CODE = """
import sys
import numpy as np
from harness.encoder.device_kernels import host_memory
from harness.measure.resources import host_peak, reset_host_peak

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if "keep" in sys.argv:
    assert host_memory.keep_freed_memory()
before = resident()
held = np.ones(80_000_000 // 8)
del held
print(resident() - before > 60_000_000, end=" ")
reset_host_peak()
print(host_peak() - before > 60_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux" or not keep_freed_memory(), reason="the C library is not glibc")
@pytest.mark.parametrize(("option", "expected"), [("keep", "True False"), ("plain", "False False")])
def test_freed_memory_stays_and_is_no_part_of_a_peak(option: str, expected: str) -> None:
    """80 MB that a tensor freed stay resident if they are kept, and the next peak begins without them."""
    done = subprocess.run([sys.executable, "-c", CODE, option], capture_output=True, encoding="utf-8", check=False)
    assert done.stdout.strip() == expected, done.stderr


def test_contents_and_addresses_stay() -> None:
    """Also if the system grants no huge page; a page that memory shares with other memory counts."""
    weights = torch.arange(3 << 20, dtype=torch.float32)
    before = weights.clone(), weights.data_ptr()
    assert 0 <= use_huge_pages(weights.data_ptr(), weights.nbytes) <= 7
    assert torch.equal(weights, before[0]) and weights.data_ptr() == before[1]
