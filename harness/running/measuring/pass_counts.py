"""How many passes over the test rows the cells of a method take, for estimates before anything runs.

With three rounds, each cell by itself, the default, a cell of a method takes per set and seed (own passes at its own depth):

=================  ============  =========  ==========  ============================================
cells              own passes    reference  full depth  single samples
=================  ============  =========  ==========  ============================================
method             4 a point     3 a point  0           up to 0.5 s a point
control            3 a point     3 a point  0           none
bound              3 a point     3 a point  3 + 1       none
not timed          1 a point     0          0 (bound 2)  up to 0.5 s once, in seeds that are checked
=================  ============  =========  ==========  ============================================

One of the own passes of a timed method is over the dev rows; it is counted as one over test. A checked cell of a method with an
engine takes one more own pass, without the engine.

With ``share_reference``, 3 passes of the reference serve eight points or more; ``tolerance`` lets the rounds end after 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.contracts import Kind, NamesPoints
from harness.measure.diagnostics import BUDGET
from harness.running.measuring.timing import LEAST_TOGETHER, TimingSettings
from harness.running.profile import Profile


@dataclass(frozen=True)
class PassCounts:
    """Passes over all test rows that the cells of one method with one seed take, warm-up batches apart.

    Attributes:
        own: of the method, each at the depth of its point.
        reference: of the reference, at full depth; of passes that cells share, an eighth for each.
        full: of the method at full depth with every head: foresight of bounds, and answers of all layers.
        alone: cells in which single samples run for up to :data:`harness.measure.diagnostics.BUDGET` seconds.
    """

    own: int
    reference: float
    full: int
    alone: int

    def full_passes(self, share: float) -> float:
        """Return the equivalent number of passes at full depth.

        Args:
            share: mean time of a pass of the method, over that of a pass at full depth; mean layers over depth, if unknown.
        """
        return self.own * share + self.reference + self.full

    def seconds(self, full_pass: float, share: float) -> float:
        """Return the time of all passes, if one at full depth takes ``full_pass`` seconds."""
        return self.full_passes(share) * full_pass + self.alone * BUDGET


def passes_of(profile: Profile, name: str, seed: int, *, all_rounds: bool = True) -> PassCounts:
    """Return :func:`count_passes` of a method or variant, from what it says before it is fitted."""
    method, timing = profile.method_of(name), profile.timing
    points = len(method.point_names(profile.config(name))) if isinstance(method, NamesPoints) else 1
    found = count_passes(
        timing,
        profile.rounds,
        name,
        seed,
        points,
        kind=method.kind,
        answers_at_depths=hasattr(getattr(method, "fitted", None), "depth_answers"),
        all_rounds=all_rounds,
    )
    if profile.engine(name) is None or not timing.checks(seed):
        return found
    return replace(found, own=found.own + (points if timing.times(name, seed) else 1))


def count_passes(
    timing: TimingSettings,
    rounds: int,
    method: str,
    seed: int,
    points: int,
    *,
    kind: Kind = "method",
    answers_at_depths: bool = False,
    all_rounds: bool = True,
) -> PassCounts:
    """Return the passes of all cells of a method with one seed on one dataset.

    Args:
        rounds: of the profile.
        points: operating points, at least 1.
        answers_at_depths: the method stores what every exit would answer; a bound always does.
        all_rounds: no tolerance ends the rounds early; False for the fewest passes.
    """
    bound = kind == "bound"
    full = int(bound or answers_at_depths)
    if not timing.times(method, seed):
        checked = timing.checks(seed)
        own = points + checked
        return PassCounts(own, 0, full + own * bound, int(checked and kind == "method"))
    most = rounds if all_rounds or not timing.tolerance else min(rounds, 2)
    groups = points / LEAST_TOGETHER if timing.share_reference else points
    own = most * points
    if kind == "method":
        own += points  # over the dev rows
    return PassCounts(own, most * groups, full + own * bound, points * (kind == "method"))
