"""Fits of several methods at a time, in worker processes, into the cache that the grid reads.

Small models leave most cores idle: two fits of one thread each are faster than one after the other on two threads. With
``--fit-only``, fits of all datasets and seeds run side by side; otherwise those of one dataset and seed, before the first of its
cells is measured, so that nothing else runs while passes are timed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import Any

from harness.core import clock
from harness.core.errors import MethodError, WriteError, is_fatal
from harness.running.fits.fit_plan import FitJob, MissingFits, TimeLeft, fit_in_order, missing_fits, shown_time
from harness.running.fits.fit_times import FitTimes
from harness.running.run_settings import Settings
from harness.running.session import Session


class FitPool:
    """Worker processes that fit methods into the cache; closed at the end of a ``with`` block.

    A worker (``python -m harness.running.fits.fit_worker``) reads one JSON line per fit and answers with one. One that ends, for
    example because the memory is full, fails its fit, and another one takes its place. If nothing more can be written, the run
    ends.

    Args:
        settings: the run. Its profile says how many workers there are; they start when there is something to fit.

    Attributes:
        is_used: whether there are workers: on a CPU, with more than one process, and without ``--fresh``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.processes = settings, settings.profile.workers
        self.is_used = self.processes > 1 and settings.device == "cpu" and not settings.fresh
        self._stopped = False
        self._printing = Lock()
        self._tracebacks: dict[FitJob, str] = {}
        self._workers: list[subprocess.Popen[str]] = []
        self._idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._seconds: dict[str, float] = {}  # of the latest fit of each method

    def __enter__(self) -> FitPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # a worker that died has closed it
                worker.stdin.close()
        if kind is not None:
            self.stop()
        for worker in self._workers:
            worker.wait()

    def stop(self) -> None:
        """End the workers now."""
        self._stopped = True
        for worker in self._workers:
            worker.terminate()

    def start(self, workers: int) -> None:
        """Start workers up to this number; they import what they need while this process does something else."""
        while len(self._workers) < workers:
            self._idle.put(self._start_one())

    def _start_one(self) -> subprocess.Popen[str]:
        settings, threads = self.settings, self.settings.fit_threads
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        worker = subprocess.Popen(
            [sys.executable, "-m", "harness.running.fits.fit_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,  # Ctrl+C reaches this process only, which then ends the workers
            env={**environment, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"},
        )
        self._workers.append(worker)
        first = {
            "profile": settings.profile.model_copy(update={"fit_threads": threads}).model_dump(mode="json"),
            "data": None if settings.data is None else str(settings.data.resolve()),
            "device": settings.device,
            "threads": threads,
        }
        self._send(worker, first)
        return worker

    def fit(self, session: Session, methods: Sequence[str]) -> None:
        """Fit ``methods``, and what they need, into the cache; existing fits stay.

        Does nothing without workers. Failures are printed; the caller fits these methods itself and handles the error.

        Raises:
            WriteError: nothing more can be written.
            GeepBenchError: the session's data or backbone cannot be used.
        """
        if not self.is_used:
            return
        if not all(session.may_be_cached(name) for name in methods):
            self.start(1)  # the others start when this process needs no core any more
        _ = session.prepared  # makes the backbone once, for all workers
        # Broken plug-ins, and engines that a method cannot use, are reported when its turn comes.
        missing = missing_fits(session, methods).needs
        seconds = {job: self._seconds.get(job.method, 1.0) for job in missing}
        for job, error in self._carry_out(missing, seconds).items():
            print(f"{job}: not fitted in a worker ({error}); fitting it here", file=sys.stderr)

    def fit_all(self, sessions: Iterable[Session]) -> dict[FitJob, Exception]:
        """Fit the methods of these datasets and seeds, and what they need, all side by side.

        Returns:
            Why methods cannot be measured, by dataset, seed and method: their own fit failed, or one that they need.

        Raises:
            WriteError: nothing more can be written.
        """
        profile = self.settings.profile
        missing: dict[FitJob, list[FitJob]] = {}
        choosing: set[FitJob] = set()
        failed: dict[FitJob, Exception] = {}
        places: list[tuple[str, int]] = []
        rows: dict[str, int] = {}
        for session in sessions:
            place = session.dataset, session.seed
            methods = [name for name in profile.methods if session.seed in profile.seeds_of(name)]
            places.append(place)
            try:
                found = missing_fits(session, methods)
                rows[session.dataset] = len(session.prepared.task.train)
            except Exception as error:
                if is_fatal(error):
                    raise
                found = MissingFits({}, set(), dict.fromkeys(methods, error))
            missing |= found.needs
            choosing |= found.choosing
            failed |= {FitJob(*place, name): error for name, error in found.failed.items()}
        times = FitTimes(profile, rows)
        errors = self._carry_out(missing, {job: times.of_job(job, choosing).seconds for job in missing})
        for place in places:
            for name in profile.methods:
                why = errors.get(FitJob(*place, profile.fit_of(name)))
                if why is not None:
                    failed.setdefault(FitJob(*place, name), why)
        return failed

    def _carry_out(
        self, missing: Mapping[FitJob, Sequence[FitJob]], seconds: Mapping[FitJob, float]
    ) -> dict[FitJob, MethodError]:
        """Make fits, each after those that it needs; return the failures, with tracebacks as notes. ``seconds``: estimates."""
        if not missing:
            return {}
        self.start(min(self.processes, len(missing)))
        left = TimeLeft(seconds, self.processes)

        def ask(job: FitJob) -> str | None:
            worker, start = self._idle.get(), clock.now()
            try:
                facts = self._send(worker, job._asdict(), answer=True)
            finally:
                if worker.poll() is not None and not self._stopped:
                    self._workers.remove(worker)
                    worker = self._start_one()
                self._idle.put(worker)
            took, reason = clock.now() - start, facts.get("reason")
            self._seconds[job.method] = took
            self._tracebacks[job] = facts.get("traceback", "")
            with self._printing:
                done = f"fitted in {shown_time(took)}" if reason is None else f"failed after {shown_time(took)}"
                print(f"{job}: {done}; about {shown_time(left.after(job, took))} left for all fits", file=sys.stderr)
            return reason

        failed: dict[FitJob, MethodError] = {}
        for job, reason in fit_in_order(list(missing), missing, ask, self.processes, self.stop, seconds).items():
            failed[job] = MethodError(reason)
            if trace := self._tracebacks.get(job):
                failed[job].add_note(trace)
        return failed

    @staticmethod
    def _send(worker: subprocess.Popen[str], message: Mapping[str, object], *, answer: bool = False) -> dict[str, Any]:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(message) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline() if answer else "{}\n"
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            code = worker.wait()
            ending = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return {"reason": f"its worker process was ended {ending}; if the memory is full, use fewer --workers"}
        facts: dict[str, Any] = json.loads(line)
        if facts.get("fatal"):
            raise WriteError(facts["reason"])
        return facts
