"""Which fits are missing, what each of them needs, and how long they still take."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from harness.contracts import LearnsInStages, Method
from harness.core.errors import is_fatal
from harness.running.session import Session

K = TypeVar("K", bound=Hashable)


class FitJob(NamedTuple):
    """One fit of a run."""

    dataset: str
    seed: int
    method: str

    def __str__(self) -> str:
        return f"{self.dataset} {self.method} seed {self.seed}"


def trains(method: Method) -> bool:
    """Return whether a fit is taken to train: of methods that learn from others, only those that learn in stages do."""
    return not method.needs or isinstance(method, LearnsInStages)


class MissingFits(NamedTuple):
    """What is not in the cache for the methods of one dataset and seed.

    Attributes:
        needs: fit -> the missing ones that it needs; each comes after those.
        choosing: those among them that train nothing (:func:`trains`), or for which the cache or another of them has weights.
        failed: methods whose fits are unknown, with the reason: a broken plug-in, or an engine that they cannot use.
    """

    needs: dict[FitJob, list[FitJob]]
    choosing: set[FitJob]
    failed: dict[str, Exception]


def missing_fits(session: Session, methods: Iterable[str]) -> MissingFits:
    """Return the fits that methods run or learn from and that are not in the cache.

    Of fits with equal weights, the first one trains them, so that the others count as needing it.

    Raises:
        GeepBenchError: the session's data or backbone cannot be used.
    """
    profile = session.settings.profile
    _ = session.prepared
    needs: dict[str, tuple[str, ...]] = {}
    choosing: set[str] = set()
    failed: dict[str, Exception] = {}
    trained: dict[str, str] = {}  # weights -> the first method that trains them
    for method in methods:
        try:
            session.check_engine(method)
            family = [name for name in profile.fits([method]) if not session.is_cached(name)]
            for name in family:
                first = trained.setdefault(session.weights_key(name), name)
                needs[name] = (*map(profile.fit_of, profile.method_of(name).needs), first)
                if first != name or session.has_weights(name) or not trains(profile.method_of(name)):
                    choosing.add(name)
        except Exception as error:
            if is_fatal(error):
                raise
            failed[method] = error
    job = partial(FitJob, session.dataset, session.seed)
    found = {
        job(name): [job(need) for need in needed if need in needs and need != name] for name, needed in needs.items()
    }
    return MissingFits(found, set(map(job, choosing)), failed)


def shown_time(seconds: float) -> str:
    """Return a duration in words, e.g. ``"2.3 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class TimeLeft(Generic[K]):
    """Seconds that fits still take: estimates, scaled by what those that have ended took.

    Args:
        seconds: estimates; their unit does not matter once a fit has ended.
    """

    def __init__(self, seconds: Mapping[K, float], at_a_time: int) -> None:
        self._todo, self._at_a_time = dict(seconds), at_a_time
        self._expected = self._took = 0.0

    def after(self, name: K, took: float) -> float:
        """Note that a fit ended after this many seconds; return the estimated seconds for all remaining ones."""
        self._expected += self._todo.pop(name)
        self._took += took
        return sum(self._todo.values()) * self._took / max(self._expected, 1e-9) / self._at_a_time
