"""The pytest-benchmark cells of a profile, and the sessions that run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.contracts import NamesPoints, OperatingPoint
from harness.core.errors import ConfigError, MethodError
from harness.measure.passes import Contender
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session

FIRST = "first"


@dataclass(frozen=True)
class CellId:
    """One benchmark: a method at one operating point on one dataset with one seed."""

    dataset: str
    seed: int
    method: str
    point: str

    def __str__(self) -> str:
        return f"{self.dataset}-{self.method}-{self.point}" + (f"-seed{self.seed}" if self.seed else "")


def point_names(profile: Profile, method: str) -> Sequence[str]:
    """Return the operating points of a method or variant by its settings; :data:`FIRST` if it does not name them."""
    try:
        found = profile.method_of(method)
    except MethodError:  # its benchmark will fail with the reason; others are not affected
        return [FIRST]
    return list(found.point_names(profile.config(method))) if isinstance(found, NamesPoints) else [FIRST]


def cells_of(settings: Settings) -> list[CellId]:
    """Return all cells of a profile, ordered by dataset."""
    profile = settings.profile
    return [
        CellId(dataset, seed, method, point)
        for dataset in profile.datasets
        for seed in profile.seeds
        for method in profile.methods
        for point in point_names(profile, method)
    ]


class Sessions:
    """Datasets with fitted methods. The last dataset stays in memory; fits are cached on disk."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._session: Session | None = None

    def session(self, cell: CellId) -> Session:
        if self._session is None or (self._session.dataset, self._session.seed) != (cell.dataset, cell.seed):
            self._session = Session(self.settings, cell.dataset, cell.seed)
        return self._session

    def contender(self, cell: CellId) -> tuple[Contender, OperatingPoint]:
        """Return the fitted method, trained now unless cached, at the cell's point, and that point as tuned.

        Raises:
            ConfigError: the method has no such point.
        """
        session = self.session(cell)
        points = {point.name: point for point in session.points(cell.method)}
        name = next(iter(points)) if cell.point == FIRST else cell.point
        if name not in points:
            raise ConfigError(f"method '{cell.method}' has no point '{name}': it has {', '.join(points)}")
        return session.contender(cell.method, points[name]), points[name]
