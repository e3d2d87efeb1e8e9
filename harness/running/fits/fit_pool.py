"""Fits of several methods at a time, in worker processes, into the cache that the grid reads.

Small models leave most cores idle: two fits of one thread each are faster than one after the other on two threads. With
``--fit-only``, fits of all datasets and seeds run side by side; otherwise those of one dataset and seed, before the first of its
cells is measured, so that nothing else runs while passes are timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from harness.core.errors import MethodError, is_fatal
from harness.running.fits.fit_maker import first_message
from harness.running.fits.fit_plan import FitJob, MissingFits, TimeLeft, missing_fits, shown_time
from harness.running.fits.fit_times import FitTimes
from harness.running.run_settings import Settings
from harness.running.scheduling.scheduler import Event, Scheduler
from harness.running.scheduling.work_items import WorkItem
from harness.running.scheduling.worker_processes import WorkerProcesses
from harness.running.session import Session


class FitPool:
    """Worker processes that fit methods into the cache; closed at the end of a ``with`` block.

    A worker (``python -m harness.running.fits.fit_worker``) reads one JSON line per fit and answers with one. A fit whose worker
    ends, for example because the memory is full, is tried again in another one, a few times; then it fails. If nothing more can be
    written, the run ends.

    Args:
        settings: the run. Its profile says how many workers there are; they start when there is something to fit.

    Attributes:
        is_used: whether there are workers: on a CPU, with more than one process, and without ``--fresh``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.processes = settings, settings.profile.workers
        self.is_used = self.processes > 1 and settings.device == "cpu" and not settings.fresh
        threads = settings.fit_threads
        self._workers = WorkerProcesses(
            "harness.running.fits.fit_worker", first_message(settings), self.processes, threads
        )
        self._seconds: dict[str, float] = {}  # of the latest fit of each method

    def __enter__(self) -> FitPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._workers.stop()
        self._workers.close()

    def start(self, workers: int) -> None:
        """Start workers up to this number; they import what they need while this process does something else."""
        self._workers.start_processes(workers)

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
        left, failed = TimeLeft(seconds, self.processes), dict[FitJob, MethodError]()

        def tell(event: Event) -> None:
            job, took = event.item.key, shown_time(event.seconds)
            if event.kind == "lost":
                print(f"{job}: {event.reason}; trying again", file=sys.stderr)
            if event.kind == "failed":
                failed[job] = MethodError(event.reason)
                if trace := event.answer.get("traceback"):
                    failed[job].add_note(trace)
            if event.kind == "done" or (event.kind == "failed" and event.node):
                self._seconds[job.method] = event.seconds
                done = f"fitted in {took}" if event.kind == "done" else f"failed after {took}"
                left_now = shown_time(left.after(job, event.seconds))
                print(f"{job}: {done}; about {left_now} left for all fits", file=sys.stderr)

        Scheduler(self._workers, tell).run(work_of(missing, seconds))
        return failed


def work_of(missing: Mapping[FitJob, Sequence[FitJob]], seconds: Mapping[FitJob, float]) -> list[WorkItem]:
    """Return fits as tasks of one worker each."""
    return [
        WorkItem(job, needs=tuple(needs), seconds=seconds[job], place=job.dataset, message=job._asdict())
        for job, needs in missing.items()
    ]
