"""How many of the waiting queries a server takes into its next call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batching:
    """A rule for the next call.

    Attributes:
        size: queries of a call, at most.
        waits: a call waits until ``size`` queries are there (a window of arrivals); otherwise an idle server takes what waits.
    """

    size: int
    waits: bool

    @property
    def name(self) -> str:
        return f"window {self.size}" if self.waits else f"up to {self.size}"

    def take(self, waiting: int, last: bool) -> int:
        """Return how many of the waiting queries the next call takes; 0: wait for more.

        Args:
            last: no more queries will come, so that a window need not be full.
        """
        if self.waits and waiting < self.size and not last:
            return 0
        return min(waiting, self.size)
