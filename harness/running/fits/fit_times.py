"""How long fits take: as the cache's fits of the same method took or, without any, by shapes and the time of one row."""

from __future__ import annotations

import glob
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any, NamedTuple

from harness.core.files import cache_root
from harness.core.text_formats import read_json
from harness.running.fits.fit_plan import FitJob, trains
from harness.running.fits.fit_store import FITS
from harness.running.profile import Profile

CHOOSING = 5.0  # seconds for a method that trains nothing


@dataclass(frozen=True)
class RowTimes:
    """Seconds of one row at full depth, in training (forward and backward) and in prediction."""

    train: float
    predict: float


class FitTime(NamedTuple):
    """Seconds of one fit without those that it needs; and whether they come from fits in the cache."""

    seconds: float
    recorded: bool


def recorded_seconds(dataset: str, name: str, rows: int) -> list[float]:
    """Return what fits of this name and this number of train rows took, teachers included; 0 where nothing was trained."""
    found = []
    for path in sorted((cache_root() / FITS).glob(f"{glob.escape(f'{dataset}--{name}')}--*/training.json")):
        try:
            report = read_json(path)
            if report is None:
                found.append(0.0)
            elif report["sample_passes"] % rows == 0:  # whole epochs of these rows
                found.append(float(report["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):  # damaged: it is made again
            continue
    return found


def _epochs(config: Mapping[str, Any], method: Any) -> int:
    """Return the passes over train of all stages, at most."""
    settings = getattr(method, "settings", None)
    fields = getattr(settings, "model_fields", {})
    names = {name for name in (*fields, *config) if name == "epochs" or name.endswith("_epochs")}
    values = [config.get(name, getattr(fields.get(name), "default", None)) for name in names]
    return sum(value for value in values if isinstance(value, int))


class FitTimes:
    """Estimates for the fits of a profile.

    Args:
        rows: dataset -> its train rows.
        times: dataset -> seconds of one row; without it, fits that the cache has no example of are compared with each other only.
        depth: layers of the backbone.
    """

    def __init__(
        self, profile: Profile, rows: Mapping[str, int], times: Mapping[str, RowTimes] | None = None, depth: int = 12
    ) -> None:
        self._profile, self._rows, self._depth = profile, rows, depth
        self._times: Mapping[str, RowTimes] = times or dict.fromkeys(rows, RowTimes(0.1, 0.03))
        self._total: Callable[[str, str], float | None] = cache(self._recorded)

    def of(self, dataset: str, name: str) -> FitTime:
        """Return the seconds of one fit, by the method's fits on this dataset, else on others, else by its settings."""
        own = self._recorded_own(dataset, name)
        if own is not None:
            return FitTime(own, True)
        here = self._times[dataset].train * self._rows[dataset]
        scales = {other: self._times[other].train * self._rows[other] for other in self._rows}
        elsewhere = [
            seconds * here / scales[other]
            for other in self._rows
            if (seconds := self._recorded_own(other, name)) is not None
        ]
        if elsewhere:
            return FitTime(median(elsewhere), True)
        return FitTime(self._by_shape(dataset, name), False)

    def of_job(self, job: FitJob, choosing: Container[FitJob]) -> FitTime:
        """Return :meth:`of` one fit, which is short if it only chooses for weights that are there."""
        found = self.of(job.dataset, job.method)
        return FitTime(min(CHOOSING, found.seconds), found.recorded) if job in choosing else found

    def _recorded(self, dataset: str, name: str) -> float | None:
        found = recorded_seconds(dataset, name, self._rows[dataset])
        return median(found) if found else None

    def _recorded_own(self, dataset: str, name: str) -> float | None:
        """Return the recorded seconds less those of the teachers, which reports include."""
        total = self._total(dataset, name)
        if total is None:
            return None
        needs = {self._profile.fit_of(need) for need in self._profile.method_of(name).needs}
        taught = sum(self._total(dataset, need) or 0.0 for need in needs)
        return max(CHOOSING, total - taught if total >= taught else total)

    def _by_shape(self, dataset: str, name: str) -> float:
        """Return an upper estimate: all epochs of all stages, the share of layers that a student has, and its teacher's passes."""
        profile, times = self._profile, self._times[dataset]
        method, config = profile.method_of(name), profile.config(name)
        if not trains(method):
            return CHOOSING
        layers = config.get("layers")
        share = min(1.0, layers / self._depth) if isinstance(layers, int) else 1.0
        row = share * times.train + (times.predict if method.needs else 0.0)
        return CHOOSING + _epochs(config, method) * self._rows[dataset] * row


def longest_chain(needs: Mapping[Any, Sequence[Any]], seconds: Mapping[Any, float]) -> float:
    """Return the seconds of the longest chain of fits that wait for each other.

    Args:
        needs: fit -> those that it needs, which come before it.
    """
    ends: dict[Any, float] = {}
    for job, before in needs.items():
        ends[job] = seconds[job] + max((ends[need] for need in before), default=0.0)
    return max(ends.values(), default=0.0)
