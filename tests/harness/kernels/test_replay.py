"""Sanitizers find the planted errors in kernels and report nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.kernels import Source, host, replay

TEXT = """
typedef unsigned int u32;
extern "C" __global__ void count(const int* what, u32* bins, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(bins + what[i], 1u);
}
extern "C" __global__ void reverse(const int* in, int* out) {
  __shared__ int part[64];
  part[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = part[63 - threadIdx.x];
  __syncthreads();
}
extern "C" __global__ void neighbour(const int* in, int* out) {
  int lane = threadIdx.x;
  out[lane] = in[lane];
  __syncwarp();
  out[lane + 32] = out[(lane + 1) % 32];
}
"""


def record(source: Source, path: Path) -> None:
    """Record a launch of every kernel."""
    recorder = replay.LaunchRecorder(host.launcher(source, flags=("-O1",)), path)
    recorder.launch("count", 4, 64, torch.arange(5000, dtype=torch.int32) % 7, torch.zeros(7, dtype=torch.int32), 5000)
    recorder.launch("reverse", 4, 64, torch.arange(256, dtype=torch.int32) * 100, torch.zeros(256, dtype=torch.int32))
    recorder.launch("neighbour", 1, 32, torch.arange(32, dtype=torch.int32), torch.zeros(64, dtype=torch.int32))


@pytest.mark.slow
@pytest.mark.parametrize(("sanitizer", "good", "bad", "word"), [
    ("thread", "", "", None),
    ("address", "", "", None),
    ("thread", "atomicAdd(bins + what[i], 1u)", "bins[what[i]] += 1", "data race"),
    ("thread", "+ threadIdx.x];\n  __syncthreads();", "+ threadIdx.x];", "data race"),
    ("thread", "__syncwarp();", "", "data race"),
    ("address", "i < n; i +=", "i <= n; i +=", "heap-buffer-overflow"),
    ("address", "part[threadIdx.x] = in[", "part[threadIdx.x] = (1 << 20) * in[", "signed integer overflow"),
])  # fmt: skip
def test_a_sanitizer_finds_errors_and_nothing_else(
    tmp_path: Path, sanitizer: str, good: str, bad: str, word: str | None
) -> None:
    """Sanitizers find races between blocks, threads and lanes, reads outside and overflow; correct code is clean."""
    if replay.problem(sanitizer):
        pytest.skip(str(replay.problem(sanitizer)))
    record(Source("test.cu", TEXT), tmp_path / "launches")
    assert not good or TEXT.count(good) == 1
    values = TEXT.replace(good, bad) if good else TEXT
    report = replay.replay(Source("test.cu", values), tmp_path / "launches", sanitizer)
    assert report.found == (word is not None)
    if word:
        with pytest.raises(RuntimeError, match=word):
            report.raise_if_bad()
