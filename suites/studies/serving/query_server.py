"""A server of queries: a load generator's thread issues them, the main thread answers them in calls.

Every query is answered exactly once, also when a call fails: the generator waits for all of them, so the rest are given back
without an answer, and the error is raised at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Condition

import numpy as np

from harness.core import clock
from harness.core.errors import MethodError
from suites.studies.serving.batching import Batching


@dataclass
class ServedQueries:
    """What a server noted, in seconds of its own clock.

    Attributes:
        arrivals: by query, in the order of issue.
        answered: by query; NaN before its answer.
        samples: by query, the number of its sample.
        labels: by query.
        calls: begin, end and number of queries of every call.
    """

    arrivals: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    calls: list[tuple[float, float, int]] = field(default_factory=list)

    @property
    def latencies(self) -> np.ndarray:
        """From issue to answer, float64 [N]."""
        return np.array(self.answered) - np.array(self.arrivals)


class QueryServer:
    """Collects queries and answers them.

    Args:
        answer: numbers of samples (int64 [M]) -> their labels (int64 [M]).
        complete: tells the generator that the queries with these IDs are answered.
    """

    def __init__(
        self,
        answer: Callable[[np.ndarray], np.ndarray],
        batching: Batching,
        complete: Callable[[Sequence[int]], None],
    ) -> None:
        self.served = ServedQueries()
        self._answer, self._batching, self._complete = answer, batching, complete
        self._changed = Condition()
        self._waiting: deque[tuple[int, int]] = deque()  # ID of a query and its place in ``served``
        self._open: set[int] = set()
        self._last = self._ended = False
        self._error: BaseException | None = None

    def issue(self, queries: Iterable[tuple[int, int]]) -> None:
        """Take queries, each with its ID and the number of its sample; called by the generator."""
        now = clock.now()
        given_back = []
        with self._changed:
            for query, sample in queries:
                if query in self._open:
                    self._error = self._error or MethodError(f"the load generator issued query {query} twice at a time")
                    continue
                if self._error is not None:
                    given_back.append(query)
                    continue
                self._open.add(query)
                self._waiting.append((query, len(self.served.arrivals)))
                self.served.arrivals.append(now)
                self.served.answered.append(np.nan)
                self.served.samples.append(sample)
                self.served.labels.append(-1)
            self._changed.notify()
        if given_back:
            self._complete(given_back)

    def flush(self) -> None:
        """Answer what waits although a window is not full: the generator issues no more."""
        with self._changed:
            self._last = True
            self._changed.notify()

    def end(self) -> None:
        """Let :meth:`serve` return; called when the generator has got all answers, or failed."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def serve(self) -> None:
        """Answer queries until the generator has ended.

        Raises:
            MethodError: a query was issued twice, or was never answered.
            BaseException: what a call raised, after the generator got its queries back.
        """
        going = True
        while going:
            try:
                batch = self._next()
                going = bool(batch)
                if going:
                    self._call(batch)
            except BaseException as error:  # noqa: BLE001 an interrupt, too, is raised when the generator has ended
                self._give_up(error)
        if self._error is not None:
            raise self._error
        if self._open:
            raise MethodError(f"{len(self._open)} queries of the load generator were never answered")

    def _give_up(self, error: BaseException) -> None:
        """Give all queries back without answers, and those that will be issued, so that the generator comes to its end."""
        with self._changed:
            self._error = self._error or error
            left = list(self._open)
            self._open.clear()
            self._waiting.clear()
        if left:
            self._complete(left)

    def _next(self) -> list[tuple[int, int]]:
        """Wait for the next call's queries; empty at the end."""
        with self._changed:
            while not (count := self._batching.take(len(self._waiting), self._last)) and not self._ended:
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(count)]

    def _call(self, batch: Sequence[tuple[int, int]]) -> None:
        places = [place for _, place in batch]
        begin = clock.now()
        labels = self._answer(np.array([self.served.samples[place] for place in places]))
        with self._changed:
            for query, _ in batch:
                if query not in self._open:
                    raise MethodError(f"query {query} of the load generator would be answered twice")
            self._open.difference_update(query for query, _ in batch)
        self._complete([query for query, _ in batch])
        end = clock.now()
        for place, label in zip(places, labels, strict=True):
            self.served.answered[place], self.served.labels[place] = end, int(label)
        self.served.calls.append((begin, end, len(batch)))
