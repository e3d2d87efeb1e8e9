"""The counting sort's kernels, run on the host, equal torch's schedule."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import ConfigError
from harness.execution import schedule as module
from harness.execution.schedule import schedule, schedule_on_device, sort_kernels
from harness.kernels import Launcher, host
from harness.kernels.replay import SANITIZERS, LaunchRecorder, problem, replay

NEEDS_COMPILER = pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))
SMALL_TILE = re.sub(r"#define TILE 2048", "#define TILE 40", sort_kernels().text)


def check(
    exits: torch.Tensor,
    lengths: torch.Tensor,
    depth: int,
    longest: int,
    launcher: Launcher | None,
    descending: bool = True,
    window: int = 0,
) -> None:
    """Check that the order equals that of ``schedule``."""
    made = schedule_on_device(
        exits, lengths, depth=depth, max_length=longest, descending=descending, window=window, launcher=launcher
    )
    assert made.dtype == torch.int64
    assert torch.equal(made, schedule(exits, lengths, descending=descending, window=window))


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """Draw samples and bounds: few and many bins, short last tiles and windows, one pass, two passes or none."""
    depth = draw(st.integers(1, 24))
    longest = draw(st.sampled_from([0, 1, 7, 63, 128, 512, 4095, 5000]))
    size = draw(st.integers(0, 300))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    few = draw(st.integers(1, longest + 1))
    return {
        "exits": torch.from_numpy(rng.integers(0, depth, size).astype(np.int16)),
        "lengths": torch.from_numpy(rng.integers(0, few, size)),
        "depth": depth,
        "longest": longest,
        "descending": draw(st.booleans()),
        "window": draw(st.sampled_from([0, 1, 7, 40, 41, 100, 1000])),
    }


@NEEDS_COMPILER
@settings(max_examples=120)
@given(cases(), st.integers(1, 3), st.booleans(), st.integers(0, 1000), st.sampled_from([0, 8, 1 << 20]))
def test_the_counting_sort_equals_the_schedule(case: dict, workers: int, fuzz: bool, seed: int, cells: int) -> None:
    """Kernels with many small tiles equal the schedule bit for bit for any thread order."""
    source = replace(sort_kernels(), text=SMALL_TILE)
    launcher = host.launcher(source, workers=workers, fuzz=fuzz, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", 40)
        patch.setattr(module, "_CELLS", cells)
        check(**case, launcher=launcher)


@settings(max_examples=100)
@given(cases())
def test_the_library_s_sort_equals_the_schedule(case: dict) -> None:
    """The fallback without a kernel gives the same order."""
    check(**case, launcher=None)


@NEEDS_COMPILER
def test_large_sets_are_sorted_in_several_tiles() -> None:
    """50,000 realistic samples are sorted in windows and at once, in one pass (12 exits) and two (24 x 513 bins)."""
    rng = np.random.default_rng(0)
    for depth, longest in ((12, 128), (24, 512)):
        exits = torch.from_numpy(rng.integers(0, depth, 50_000).astype(np.int16))
        lengths = torch.from_numpy(rng.integers(1, longest + 1, 50_000))
        for window in (0, 4096):
            check(exits, lengths, depth, longest, host.launcher(sort_kernels(), workers=2), window=window)


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=NEEDS_COMPILER), False])
def test_numbers_out_of_bounds_are_clamped(kernels: bool) -> None:
    """Exits and lengths are not validated here, so values out of bounds are clamped and write nothing outside the buffers."""
    exits, lengths = torch.tensor([5, -1, 1, 30000], dtype=torch.int16), torch.tensor([1 << 40, 3, -5, 2])
    launcher = host.launcher(sort_kernels()) if kernels else None
    made = schedule_on_device(exits, lengths, depth=3, max_length=8, launcher=launcher)
    assert made.tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize(("exits", "lengths", "options", "word"), [
    ([1, 2], [3], {}, "must both be"),
    ([1], [3], {"window": -1}, "window=-1"),
    ([1], [3], {"depth": 0}, "depth=0"),
    ([1], [3], {"max_length": -1}, "max_length=-1"),
    ([1], [3], {"max_length": 1 << 31}, "too many"),
])  # fmt: skip
def test_invalid_bounds_are_rejected(exits: list, lengths: list, options: dict, word: str) -> None:
    """The message names the invalid number."""
    with pytest.raises(ConfigError, match=word):
        schedule_on_device(torch.tensor(exits), torch.tensor(lengths), **{"depth": 3, "max_length": 9, **options})


def record(path: Path) -> None:
    """Record both passes over a few tiles."""
    rng = np.random.default_rng(1)
    exits, lengths = (
        torch.from_numpy(rng.integers(0, 5, 5000).astype(np.int16)),
        torch.from_numpy(rng.integers(0, 9, 5000)),
    )
    recorder = LaunchRecorder(host.launcher(sort_kernels()), path)
    for longest in (8, 2000):
        check(exits, lengths, 5, longest, recorder, window=2500)


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_the_kernels_are_clean_under_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    """The sanitizers find no race in shared or global memory, no access outside a buffer and no undefined behaviour."""
    if problem(sanitizer):
        pytest.skip(str(problem(sanitizer)))
    record(tmp_path / "launches")
    replay(sort_kernels(), tmp_path / "launches", sanitizer).raise_if_bad()


BUGS = {
    "counting before counts are zero": ("count[bin] = 0;\n  __syncthreads();", "count[bin] = 0;"),
    "counts read before they are complete": ("descending)], 1u);\n  __syncthreads();", "descending)], 1u);"),
    "counts added without an atomic": (
        "atomicAdd(&count[bin_of(exits, lengths, order ? order[at] : at, depth, longest, by, descending)], 1u)",
        "count[bin_of(exits, lengths, order ? order[at] : at, depth, longest, by, descending)] += 1u"),
    "positions used before they are computed": (
        "ends[cell] - counts[cell];\n  }\n  __syncwarp();", "ends[cell] - counts[cell];\n  }"),
    "positions changed while others read them": ("before : 0;\n    __syncwarp();", "before : 0;"),
    "not stable": ("((1u << lane) - 1)", "~((2u << lane) - 1)"),
    "ends used as beginnings": ("ends[cell] - counts[cell]", "ends[cell]"),
    "a tile reaches into the next window": (
        "if (end > size) end = size;\n  if (end > begin + TILE) end = begin + TILE;\n  int lane",
        "end = size;\n  if (end > begin + TILE) end = begin + TILE;\n  int lane"),
    "the second pass ignores the first": ("at < end && order ? order[at] : at", "at"),
    "shortest samples first": ("length = longest - length;", ""),
}  # fmt: skip


def compare(text: str) -> None:
    """Sort small cases with kernels of that text, in one pass and two. It changes module constants: use its own process."""
    rng = np.random.default_rng(2)
    module.TILE, module.MAX_BINS = 40, 100
    for seed in range(4):
        launcher = host.launcher(replace(sort_kernels(), text=text), fuzz=True, seed=seed, flags=("-O1",))
        exits = torch.from_numpy(rng.integers(0, 5, 500).astype(np.int16))
        lengths = torch.from_numpy(rng.integers(0, 9, 500))
        for longest, window in ((8, 0), (8, 90), (60, 90)):
            check(exits, lengths, 5, longest, launcher, window=window)


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("bug", [None, *BUGS])
def test_planted_bugs_are_caught(tmp_path: Path, bug: str | None, fails_apart: Callable[..., bool]) -> None:
    """Wrong orders or a sanitizer reveal every planted bug; the unchanged kernels pass."""
    good, bad = BUGS[bug] if bug else ("#define TILE", "#define TILE")
    assert SMALL_TILE.count(good) == 1, "the planted bug must apply exactly once"
    caught = fails_apart(compare, SMALL_TILE.replace(good, bad))
    if not caught and bug:
        if problem("thread"):
            pytest.skip(str(problem("thread")))
        record(tmp_path / "launches")
        text = sort_kernels().text.replace(good, bad)
        caught = replay(replace(sort_kernels(), text=text), tmp_path / "launches", "thread", fuzz=True).found
    assert caught == (bug is not None)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_machine_code_has_no_spills(tmp_path: Path, arch: int) -> None:
    """ptxas keeps all values in registers."""
    source = sort_kernels()
    (tmp_path / source.name).write_text(source.text)
    command = ["nvcc", "-std=c++17", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v", str(tmp_path / source.name)]
    done = subprocess.run([*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert frames == [("0", "0", "0")] * len(source.kernels)


@pytest.mark.gpu
def test_the_schedule_on_the_device_does_not_synchronise() -> None:
    """On CUDA, with kernels or torch, the order equals that of the CPU, and the host never waits."""
    rng = np.random.default_rng(0)
    exits, lengths = (
        torch.from_numpy(rng.integers(0, 12, 9999).astype(np.int16)),
        torch.from_numpy(rng.integers(1, 129, 9999)),
    )
    expected = schedule_on_device(exits, lengths, depth=12, max_length=128, window=1024)
    there = exits.cuda(), lengths.cuda()
    schedule_on_device(*there, depth=12, max_length=128, window=1024)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = schedule_on_device(*there, depth=12, max_length=128, window=1024)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made.cpu(), expected)
