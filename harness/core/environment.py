"""Facts about the machine and the versions that a measurement belongs to."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores together, and the period that they refer to
ON_CLUSTER = "GEEP_BENCH_ON_CLUSTER"  # set where a run has several nodes, so that results say which one measured them
COMMIT = "GEEP_BENCH_COMMIT"  # commit of code that was sent to a node, which has no checkout of it
PACKAGES = (
    *("geep-bench", "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "cupy-cuda13x"),
    *("onnxruntime", "openvino", "nncf", "ctranslate2"),  # engines
)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a Unix
        return None


def memory_left(device: torch.device | str) -> int:
    """Return the bytes of memory that a process can still have on a device.

    On a CPU they are those that the system calls available, or all that it has where it does not say.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return _memory() or 2**63 - 1


def usable_cores() -> int:
    """Return the cores that this process may use now: by its affinity, and by the quota of its container (cgroup v2)."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup v2, or no quota: "max 100000"
        quota, period = map(int, _QUOTA.read_text(encoding="utf-8").split())
        found = min(found, max(1, -(-quota // period)))
    return found


def commit() -> str | None:
    """Return the commit of this checkout, with ``+`` if files differ from it; ``None`` outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return os.environ.get(COMMIT)
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment_facts() -> dict[str, Any]:
    """Return the facts that decide whether two timings are comparable; no user name, host name or path."""
    # Both may change during a run: a fit has other threads than a pass, and a machine may lose cores.
    facts = {**_lasting_facts(), "usable_cores": usable_cores(), "torch_threads": torch.get_num_threads()}
    return {**facts, **({"node": node_name()} if os.environ.get(ON_CLUSTER) else {})}


def node_name() -> str:
    """Return a name for this machine that differs from those of others and does not show its host name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@cache
def _lasting_facts() -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "usable_cores": None,  # keeps its place, as the next one
        "torch_threads": None,
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return facts


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch this many threads inside the block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count:
            torch.set_num_threads(before)
