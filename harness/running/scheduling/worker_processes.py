"""Worker processes of this machine as a back end of the scheduler: each carries out one task at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any

from harness.core import clock
from harness.core.errors import WriteError
from harness.running.scheduling.work_items import Answer, Ended, Node, WorkItem

HERE = "here"


class WorkerProcesses:
    """Processes that read one JSON line per task and answer with one.

    A process that ends, for example because the memory is full, loses its task, and another one takes its place.

    Args:
        module: what a process runs (``python -m MODULE``).
        first: the first line that it reads.
        most: processes at a time.
        threads: of each process.
    """

    def __init__(self, module: str, first: Mapping[str, Any], most: int, threads: int) -> None:
        self._module, self._first, self._most, self._threads = module, first, most, threads
        self._workers: list[subprocess.Popen[str]] = []
        self._idle: list[subprocess.Popen[str]] = []
        self._busy: dict[subprocess.Popen[str], Any] = {}

    def start_processes(self, count: int) -> None:
        """Start processes up to this number; they import what they need while this one does something else."""
        while len(self._workers) < min(count, self._most):
            self._idle.append(self._start_one())

    def _start_one(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        worker = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,  # Ctrl+C reaches this process only, which then ends the workers
            env={**environment, "OMP_NUM_THREADS": str(self._threads), "TQDM_DISABLE": "1"},
        )
        self._workers.append(worker)
        _write(worker, self._first)
        return worker

    def nodes(self) -> Sequence[Node]:
        return [Node(HERE, self._most)]

    def start(self, item: WorkItem, node: Node) -> None:
        if not self._idle:
            self.start_processes(len(self._workers) + 1)
        worker = self._idle.pop()
        self._busy[worker] = item.key
        _write(worker, item.message)

    def wait(self, seconds: float) -> Sequence[Ended]:
        if not self._busy:
            time.sleep(seconds)
            return []
        outputs = {worker.stdout: worker for worker in self._busy}
        ended = []
        for ready in connection.wait([*outputs], seconds):  # type: ignore[list-item]  # pipes have a file number
            worker = outputs[ready]  # type: ignore[index]
            key = self._busy.pop(worker)
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if line.endswith("\n"):
                self._idle.append(worker)
                ended.append(Ended(key, _checked(json.loads(line))))
            else:
                self._workers.remove(worker)
                ended.append(Ended(key, None, _ending(worker.wait())))
        return ended

    def stop(self) -> None:
        for worker in self._workers:
            worker.terminate()

    def now(self) -> float:
        return clock.now()

    def close(self) -> None:
        """Let the processes end, and wait for that."""
        for worker in self._workers:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # a worker that died has closed it
                worker.stdin.close()
        for worker in self._workers:
            worker.wait()


def _write(worker: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has ended, which wait() tells
        worker.stdin.write(json.dumps(message) + "\n")
        worker.stdin.flush()


def _checked(answer: Answer) -> Answer:
    """Return an answer.

    Raises:
        WriteError: it says that nothing more can be written.
    """
    if answer.get("fatal"):
        raise WriteError(answer["reason"])
    return answer


def _ending(code: int) -> str:
    ending = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"its worker process was ended {ending}; if the memory is full, use fewer --workers"
