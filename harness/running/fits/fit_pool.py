"""Fits of several methods at a time, in worker processes, into the cache that the grid reads.

Small models leave most cores idle: two fits of one thread each are faster than one after the other on two threads. All fits of a
dataset end before the first of its cells is measured, so that nothing else runs while passes are timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from types import TracebackType

from harness.core import clock
from harness.core.errors import WriteError, is_fatal
from harness.running.run_settings import Settings
from harness.running.session import Session

Fit = Callable[[str], str | None]  # a method's name -> why it failed, or None


def fit_in_order(
    names: Sequence[str],
    needs: Mapping[str, Iterable[str]],
    fit: Fit,
    at_a_time: int,
    stop: Callable[[], None] = lambda: None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Call ``fit`` for every name, at most ``at_a_time`` at once, each after the methods that it needs.

    A method that needs a failed one is skipped. Of those that may start, the one goes first after which most is left to do: its
    own fit and the longest chain of fits that wait for it. Long fits at the end would leave processes idle.

    Args:
        names: methods, each after those that it needs.
        needs: for each method, the names that it learns from.
        stop: ends the fits that run now; called before an error or an interrupt is passed on.
        seconds: of fits, as far as known; 1 for others.

    Returns:
        The failures: method -> reason.

    Raises:
        Exception: what ``fit`` raised.
    """
    todo, done, failed = list(names), set[str](), dict[str, str]()
    left: dict[str, float] = {}
    for name in reversed(names):
        after = max((left[other] for other in left if name in needs[other]), default=0.0)
        left[name] = after + (seconds or {}).get(name, 1.0)
    todo.sort(key=lambda name: -left[name])
    running: dict[Future[str | None], str] = {}
    with ThreadPoolExecutor(at_a_time) as threads:
        try:
            while todo or running:
                for name in [name for name in todo if set(needs[name]) & failed.keys()]:
                    todo.remove(name)
                    failed[name] = "it learns from a method that failed"
                ready = [name for name in todo if done.issuperset(needs[name])]
                for name in ready[: at_a_time - len(running)]:
                    todo.remove(name)
                    running[threads.submit(fit, name)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, reason = running.pop(future), future.result()
                    if reason is None:
                        done.add(name)
                    else:
                        failed[name] = reason
        except BaseException:
            stop()  # otherwise the block would wait for the fits to end, which may take hours
            raise
    return failed


class FitPool:
    """Worker processes that fit methods into the cache; closed at the end of a ``with`` block.

    A worker (``python -m harness.running.fits.fit_worker``) reads one JSON line per fit and answers with one. Whatever fails in
    a worker is only reported: the grid fits that method again in its own process and handles the error there. If nothing more
    can be written, the run ends.

    Args:
        settings: the run. Its profile says how many workers there are; they start when there is something to fit.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.processes = settings, settings.profile.fit_processes
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
        for worker in self._workers:
            worker.terminate()

    def start(self, workers: int) -> None:
        """Start workers up to this number; they import what they need while this process does something else."""
        threads = self.settings.fit_threads
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        settings = self.settings
        first = {
            "profile": settings.profile.model_copy(update={"fit_threads": threads}).model_dump(mode="json"),
            "data": None if settings.data is None else str(settings.data.resolve()),
            "device": settings.device,
            "threads": threads,
        }
        for _ in range(workers - len(self._workers)):
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
            self._send(worker, first)
            self._idle.put(worker)

    def fit(self, session: Session, methods: Sequence[str]) -> None:
        """Fit ``methods``, and what they need, into the cache; what is there already is left alone.

        Does nothing where a single process is asked for, on another device than a CPU, or where everything is fitted afresh.
        Failures are printed; the caller fits these methods itself and handles the error.

        Raises:
            WriteError: nothing more can be written.
            GeepBenchError: the session's data or backbone cannot be used.
        """
        settings, profile = self.settings, self.settings.profile
        if self.processes == 1 or settings.device != "cpu" or settings.fresh:
            return
        if not all(session.may_be_cached(name) for name in methods):
            self.start(1)  # the others start when this process needs no core any more
        _ = session.prepared  # makes the backbone once, for all workers
        needs: dict[str, tuple[str, ...]] = {}
        trained: dict[str, str] = {}  # weights -> the first method that trains them; others with equal ones wait for it
        for method in methods:
            try:
                session.check_engine(method)
                family = [name for name in profile.fits([method]) if not session.is_cached(name)]
                for name in family:
                    first = trained.setdefault(session.weights_key(name), name)
                    needs[name] = (*map(profile.fit_of, profile.method_of(name).needs), first)
            except Exception as error:
                if is_fatal(error):
                    raise
                continue  # a broken plug-in, or an engine that it cannot use: the grid reports it when its turn comes
        if not needs:
            return
        self.start(self.processes)
        job = {"dataset": session.dataset, "seed": session.seed}

        def ask(name: str) -> str | None:
            worker, start = self._idle.get(), clock.now()
            try:
                return self._send(worker, {**job, "method": name}, answer=True)
            finally:
                self._seconds[name] = clock.now() - start
                self._idle.put(worker)

        missing = {name: [need for need in found if need in needs and need != name] for name, found in needs.items()}
        for name, reason in fit_in_order(list(missing), missing, ask, self.processes, self.stop, self._seconds).items():
            print(f"{session.dataset} {name}: not fitted in a worker ({reason}); fitting it here", file=sys.stderr)

    @staticmethod
    def _send(worker: subprocess.Popen[str], message: Mapping[str, object], *, answer: bool = False) -> str | None:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(message) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline() if answer else "{}\n"
        except BrokenPipeError:
            line = ""
        facts = json.loads(line) if line.endswith("\n") else {"reason": "the worker process ended"}
        if facts.get("fatal"):
            raise WriteError(facts["reason"])
        return facts.get("reason")
