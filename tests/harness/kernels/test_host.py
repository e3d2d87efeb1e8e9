"""Kernels compiled for the host: the emulation's guarantees for blocks, warps, barriers and schedules."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.core.errors import ConfigError, DeviceError
from harness.kernels import Source, host

pytestmark = pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))

TEXT = """
typedef unsigned long long u64;
typedef unsigned int u32;
#define ALL 0xffffffffu

extern "C" __global__ void coordinates(u32* out) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * 1000 + threadIdx.x + gridDim.x * 1000000;
}

// Reverses each block's part by way of shared memory.
extern "C" __global__ void reverse(const int* in, int* out) {
  __shared__ int part[128];
  int base = blockIdx.x * blockDim.x;
  part[threadIdx.x] = in[base + threadIdx.x];
  __syncthreads();
  out[base + threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
  __syncthreads();
}

extern "C" __global__ void warp_talk(const u32* in, u32* out, u64* wide) {
  u32 mine = in[threadIdx.x], lane = threadIdx.x % 32;
  u32* to = out + threadIdx.x * 6;
  to[0] = __shfl_sync(ALL, mine, 5);
  to[1] = __shfl_up_sync(ALL, mine, 3);
  to[2] = __shfl_xor_sync(ALL, mine, 16);
  to[3] = __ballot_sync(ALL, mine & 1);
  to[4] = __match_any_sync(ALL, mine % 4);
  to[5] = __reduce_add_sync(ALL, mine);
  __syncwarp();
  wide[threadIdx.x] = __shfl_xor_sync(ALL, (u64)mine << 40 | lane, 1);
}

extern "C" __global__ void scalars(int a, i64 b, u64 c, u32 d, u64* out) {
  out[0] = (u64)(i64)a; out[1] = (u64)b; out[2] = c; out[3] = d;
}

extern "C" __global__ void order(u32* next, u32* ticket) { ticket[threadIdx.x] = atomicAdd(next, 1u); }

extern "C" __global__ void some_leave(u32* out) {
  if (threadIdx.x == 7) return;
  __syncthreads();
  out[0] = 1;
}

extern "C" __global__ void diverge() {
  if (threadIdx.x % 2) __shfl_sync(ALL, 1, 0); else __ballot_sync(ALL, 1);
}

extern "C" __global__ void partial() { if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 0); }
""".replace("typedef unsigned int u32;", "typedef unsigned int u32;\ntypedef long long i64;", 1)
SOURCE = Source("test.cu", TEXT)


@pytest.fixture(params=[(), ("-DSHIM_UCONTEXT",)], ids=["assembly", "ucontext"], scope="module")
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Use both ways to switch between the threads of a block."""
    return request.param


@pytest.mark.parametrize("workers", [1, 3])
def test_every_thread_of_every_block_runs_once(workers: int, flags: tuple[str, ...]) -> None:
    """Threads know their position in block and grid for any number of workers."""
    out = torch.zeros(7 * 64, dtype=torch.int32)
    host.launcher(SOURCE, workers=workers, flags=flags).launch("coordinates", 7, 64, out)
    place = torch.arange(7 * 64)
    assert torch.equal(out.long(), 7_000_000 + place // 64 * 1000 + place % 64)


@pytest.mark.parametrize("fuzz", [False, True])
def test_barriers_wait_for_all_threads_of_a_block(fuzz: bool, flags: tuple[str, ...]) -> None:
    """Threads of a block read after a barrier what others wrote to shared memory before it."""
    given, out = torch.randint(1000, (5, 128), dtype=torch.int32), torch.zeros(5, 128, dtype=torch.int32)
    host.launcher(SOURCE, workers=2, fuzz=fuzz, flags=flags).launch("reverse", 5, 128, given, out)
    assert torch.equal(out, given.flip(1))


def test_warp_collectives_equal_those_of_cuda(flags: tuple[str, ...]) -> None:
    """Shuffles, votes, matches and sums cover exactly the lanes of the own warp."""
    given, out = torch.randint(1 << 20, (64,), dtype=torch.int32), torch.zeros(64, 6, dtype=torch.int32)
    wide = torch.zeros(64, dtype=torch.int64)
    host.launcher(SOURCE, fuzz=True, flags=flags).launch("warp_talk", 1, 64, given, out, wide)
    for thread, (mine, found) in enumerate(zip(given.tolist(), out.tolist(), strict=True)):
        base, lane = thread // 32 * 32, thread % 32
        warp = given[base : base + 32].tolist()
        votes = sum((value & 1) << i for i, value in enumerate(warp))
        same = sum((value % 4 == mine % 4) << i for i, value in enumerate(warp))
        expected = [warp[5], warp[lane - 3] if lane >= 3 else mine, warp[lane ^ 16], votes, same, sum(warp)]
        assert [value & 0xFFFFFFFF for value in found] == expected
        assert int(wide[thread]) == warp[lane ^ 1] << 40 | lane ^ 1


def test_scalars_arrive_in_their_own_width() -> None:
    """Negative, large and unsigned numbers are passed in the type that the kernel declares."""
    out = torch.zeros(4, dtype=torch.int64)
    host.launcher(SOURCE).launch("scalars", 1, 32, -5, -(1 << 62), (1 << 64) - 1, (1 << 32) - 1, out)
    assert out.tolist() == [-5, -(1 << 62), -1, (1 << 32) - 1]


def test_the_seed_decides_the_order_of_threads() -> None:
    """Without fuzzing, threads run in order; with fuzzing, the seed decides the order."""

    def tickets(**options: int) -> list[int]:
        ticket = torch.zeros(64, dtype=torch.int32)
        host.launcher(SOURCE, **options).launch("order", 1, 64, torch.zeros(1, dtype=torch.int32), ticket)
        return ticket.tolist()

    assert tickets() == list(range(64))
    one, two = tickets(fuzz=True, seed=1), tickets(fuzz=True, seed=2)
    assert sorted(one) == sorted(two) == list(range(64))
    assert one != two and one != list(range(64))
    assert tickets(fuzz=True, seed=1) == one


@pytest.mark.parametrize(("kernel", "args", "word"), [
    ("some_leave", (torch.zeros(1, dtype=torch.int32),), "others never reach"),
    ("diverge", (), "different collectives"),
    ("partial", (), "partial mask"),
])  # fmt: skip
def test_hangs_and_undefined_behaviour_are_errors(kernel: str, args: tuple, word: str, flags: tuple[str, ...]) -> None:
    """Barriers that not all threads reach and divergent collectives are reported instead of hanging."""
    with pytest.raises(RuntimeError, match=f"{kernel}: .*{word}"):
        host.launcher(SOURCE, workers=2, flags=flags).launch(kernel, 3, 64, *args)


def test_blocks_are_whole_warps() -> None:
    """A block of 40 threads is rejected."""
    with pytest.raises(RuntimeError, match="multiple of 32"):
        host.launcher(SOURCE).launch("coordinates", 1, 40, torch.zeros(40, dtype=torch.int32))


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second build reuses the first; another macro, flag or source makes another library."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path))
    source = Source("tiny.cu", 'extern "C" __global__ void nothing() {}')
    built = host.build(source)
    before = built.stat().st_mtime_ns
    assert host.build(source) == built and built.stat().st_mtime_ns == before
    others = {host.build(Source("tiny.cu", source.text, {"A": 1})), host.build(source, ["-O0"]), built}
    assert len(others) == 3
    assert sorted(each.name for each in built.parent.iterdir()) == ["kernels.cpp", "kernels.so", "seal.json"]


TINY = Source("tiny.cu", 'extern "C" __global__ void nothing() {}')
UNSAFE: dict[str, Callable[[Path], object]] = {
    "library": lambda built: built.chmod(0o646),
    "its folder": lambda built: built.parent.chmod(0o777),
    "the folder of kernels": lambda built: built.parents[1].chmod(0o775),
    "the cache": lambda built: built.parents[2].chmod(0o1777),
    "another owner": lambda built: os.chown(built.parent, 12345, -1),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_a_library_that_others_may_write_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """It is compiled again into a folder that only this user can read, and a line says what to correct."""
    if case == "another owner" and os.getuid() != 0:
        pytest.skip("only the administrator can give files away")
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "cache"))
    built = host.build(TINY)
    assert host.build(TINY) == built and not capfd.readouterr().err
    UNSAFE[case](built)
    other = host.build(TINY)
    assert not other.is_relative_to(tmp_path) and other.is_file()
    assert other.parents[2].stat().st_mode & 0o077 == 0
    assert host.build(TINY) == other  # compiled once per process
    (line, _) = capfd.readouterr().err.splitlines()
    assert str(tmp_path / "cache") in line and "chmod go-w" in line


def test_a_library_behind_a_link_out_of_the_cache_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folders above the target of a link are unknown, so they are not trusted."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "cache"))
    built = host.build(TINY)
    built.parents[1].rename(tmp_path / "elsewhere")
    built.parents[1].symlink_to(tmp_path / "elsewhere")
    assert not host.build(TINY).is_relative_to(tmp_path)
    assert "not loaded" in capfd.readouterr().err


def test_a_damaged_library_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit is found before the library is loaded."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path))
    built = host.build(TINY)
    content = bytearray(built.read_bytes())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    built.write_bytes(flipped)
    assert host.build(TINY) == built
    assert built.read_bytes() != flipped
    assert capfd.readouterr().err.count("\n") == 1


def test_no_compiler_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a compiler, or with an invalid CXX, the message says what to install or set."""
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(DeviceError, match="no-such-compiler.*install g"):
        host.launcher(SOURCE)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install g++" in str(host.problem())


def test_an_error_in_the_source_is_quoted() -> None:
    """The compiler's first error names the line of the source."""
    with pytest.raises(ConfigError, match=r"bad\.cu:2:.*nonsense") as caught:
        host.launcher(Source("bad.cu", 'extern "C" __global__ void f() {\nnonsense;}'))
    assert "\n" not in str(caught.value)
