"""Settings of a profile that say which cells are timed, and how."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from harness.core.names import Name
from harness.core.settings import StrictSettings

LEAST_TOGETHER = 8  # cells that share rounds, unless a dataset and seed has fewer


class TimingSettings(StrictSettings):
    """Which cells are timed, and how. By default every cell is, each beside its own passes of the reference.

    A cell that is not timed takes one pass over the test rows, from which its accuracy, exits, layers and FLOPs come. It has no
    time, no speed-up and no latency, and reports show a dash.

    Attributes:
        seeds: training seeds whose cells are timed and checked for order, batch size and state; by default all.
        untimed: methods whose cells are not timed, such as controls. Order, batch size and state are still checked once for
            every method: at its first point, with a second pass.
        share_reference: time at least eight cells of a dataset and seed in the same rounds, with one pass of the reference per
            round.
        tolerance: stop the rounds, after an even number of them, when the standard error of a speed-up, pooled over the cells of
            these rounds, is at most this share; 0 for all ``rounds``.
    """

    seeds: list[Annotated[int, Field(ge=0)]] | None = None
    untimed: list[Name] = []
    share_reference: bool = False
    tolerance: float = Field(default=0.0, ge=0, le=0.2)

    def checks(self, seed: int) -> bool:
        """Return whether the cells of a seed are checked."""
        return self.seeds is None or seed in self.seeds

    def times(self, method: str, seed: int) -> bool:
        """Return whether the cells of a method with a seed are timed."""
        return self.checks(seed) and method not in self.untimed

    def key(self, method: str, seed: int) -> list[Any]:
        """Return the part of these settings that the cells of a method depend on (JSON); empty for the defaults."""
        if not self.times(method, seed):
            return [{"timed": False, "checked": self.checks(seed)}]
        ways = self.model_dump(include={"share_reference", "tolerance"}, exclude_defaults=True)
        return [ways] if ways else []
