"""A warmed-up server of ``geep-bench`` processes: it has imported everything, and forks a process per command.

``python program_server.py`` reads one JSON object per line on stdin and answers each with one line on stdout:

* ``{"start": [arguments], "log": file, "env": {...}, "fault": {...}}`` -> the process id,
* ``{"wait": pid, "seconds": s}`` -> the exit code, negative for a signal; null if it had to be killed because it took longer.

The server itself never computes, so its children start without threads. ``fault`` is applied in the child:

* ``kill_at``: SIGKILL at this storage event (a file or folder below ``below`` is opened for writing, renamed, removed or made),
  ``delay`` seconds later. ``count``: write the number of these events to this file at the end.
* ``slow_rename``: seconds to wait before each rename, which makes races between processes likely.
* ``pid``: what ``os.getpid`` returns, as in containers, whose process ids are equal.
* ``file_limit``: no file may be larger than this number of bytes (``RLIMIT_FSIZE``), the way to a full disk without a mount.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"

WARM = (
    "harness.cli.main",
    "harness.api",
    "harness.pretraining.pretrain_command",
    "harness.running.cluster.cluster_run",
    "reports.build",
    "reports.terminal",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "PIL.PngImagePlugin",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.tokenization_bert",
    "sklearn.metrics",
    "scipy.stats",
)
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def shrink() -> None:
    """Make the embedded data and its backbone, and their pretraining, small enough for a run of two seconds; store all epochs."""
    from harness.encoder import miniature
    from harness.running import task
    from harness.toolkit.resume import training_state

    miniature.SHAPE = replace(miniature.SHAPE, layers=3, width=32, heads=2, intermediate=32)
    miniature.BATCH, miniature.POOL = 8, 2
    miniature.pretrain_miniature = partial(miniature.pretrain_miniature, steps=2)
    training_state.EVERY, training_state._SHARE = 0.0, 1e9  # a state after every epoch
    task.load_embedded = partial(task.load_embedded, sizes=(30, 10, 12))


class StorageEvents:
    """Counts a process's storage events, and ends the process at one of them."""

    def __init__(self, fault: dict[str, Any]) -> None:
        self.below, self.kill_at = fault["below"], fault.get("kill_at", 0)
        self.delay, self.slow_rename = fault.get("delay", 0.0), fault.get("slow_rename", 0.0)
        self.count = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in WRITES:
            return
        if not isinstance(args[0], str | bytes | os.PathLike) or not os.fsdecode(args[0]).startswith(self.below):
            return
        self.count += 1
        if event == "os.rename" and self.slow_rename:
            time.sleep(self.slow_rename)
        if self.count == self.kill_at:
            if not self.delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()


def child(order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.update(order.get("env", {}))
    fault = order.get("fault", {})
    events = StorageEvents({"below": "", **fault})
    if {"kill_at", "count", "slow_rename"} & fault.keys():
        sys.addaudithook(events)
    if "pid" in fault:
        os.getpid = lambda: fault["pid"]
    if "file_limit" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_limit"],) * 2)
    from harness.cli.main import main

    try:
        code = main(order["start"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    if "count" in fault:
        with open(fault["count"], "w", encoding="utf-8") as file:
            file.write(str(events.count))
    return code


def start(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = child(order)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - the traceback goes to the log, where tests look for it
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for name in WARM:
        importlib.import_module(name)
    from harness import registry

    for name in registry.names():
        registry.get(name)
    shrink()
    for line in sys.stdin:
        order = json.loads(line)
        answer = start(order) if "start" in order else wait(order["wait"], order["seconds"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
