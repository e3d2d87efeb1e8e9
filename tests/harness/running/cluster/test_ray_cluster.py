"""A real Ray cluster on the loopback interface: two nodes with one CPU each. Skipped where Ray is not installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main

pytestmark = pytest.mark.slow
STORE = 80 * 2**20  # bytes of Ray's object store on each node, the least it takes
PROFILE = """
title = "tiny"
source = "local"
datasets = ["mine", "other"]
methods = ["bert", "fastbert"]
rounds = 1
max_length = 16
speeds = [0.5]
fit_threads = 1
[execution]
batch_size = 8
[training]
epochs = 20
batch_size = 4
"""


@pytest.fixture
def place(tiny_place: Callable[[str], Path]) -> Path:
    """A folder with a profile, two small datasets and a backbone."""
    return tiny_place(PROFILE)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that measures, and a second node; both processes of this machine."""
    utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install 'geep-bench[ray]'")
    facts: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}
    made = utils.Cluster(
        initialize_head=True, head_node_args={**facts, "resources": {"timing": 1}, "include_dashboard": False}
    )
    made.second = made.add_node(**facts)
    yield made
    made.shutdown()


def command(out: str, *more: str) -> list[str]:
    given = ["run", "--profile", "tiny.toml", "--data", "data", "--backbone", "en=backbone", "--device", "cpu"]
    return [*given, "--out", out, *more]


class Driver:
    """The command in a process of its own, whose messages can be waited for."""

    def __init__(self, place: Path, address: str, *more: str) -> None:
        self.log = place / f"log-{time.monotonic_ns()}.txt"
        env = {**os.environ, "RAY_ADDRESS": address}
        words = [
            sys.executable,
            "-m",
            "harness.cli",
            *command("on-ray", "--on", "ray", "--measure-on", "timing", *more),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, env=env, stdout=log, stderr=log, cwd=place)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, words: str, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while words not in self.said:
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.05)


def worker_processes() -> list[int]:
    """Return the ids of this machine's processes that carry out our tasks now."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if b"ray::carry_out" in place.read_bytes():
                found.append(int(place.parent.name))
    return found


def test_faults_of_a_real_cluster_lose_nothing(
    place: Path,
    cluster: Any,
    answers_of: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver is killed, then a worker, then a node; the same command ends with the results of a plain run, bit for bit."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(place / "plain-cache"))
    assert main(command("plain")) == 0
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(place / "cache"))
    first = Driver(place, cluster.address)
    first.wait_for("fitted in")
    first.process.kill()
    first.process.wait()
    second = Driver(place, cluster.address)
    second.wait_for("left; running:")
    for worker in worker_processes()[:1]:
        os.kill(worker, signal.SIGKILL)
    second.wait_for("trying again")
    cluster.remove_node(cluster.second, allow_graceful=False)
    assert second.process.wait(240) == 0, second.said
    assert answers_of(place / "on-ray") == answers_of(place / "plain") and len(answers_of(place / "plain")) == 4
    assert "cells: 4 measured, 0 kept from before, 0 failed" in second.said and "report: " in second.said


def test_what_is_wrong_with_a_cluster_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a cluster at the address, the command is refused with exit code 2."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'geep-bench[ray]'")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(command("on-ray", "--on", "ray")) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("geep-bench: ")]
    assert len(lines) == 1 and "no Ray cluster" in lines[0] and "ray start --head" in lines[0]
