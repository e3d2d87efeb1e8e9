"""Control: constant depth with the same heads, as the best mix of two depths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from baselines.controls.borrowed_geep import BorrowedGeep, GeepControl, mirrored
from baselines.controls.random_exits import content_hash, exits_by_rank
from harness.contracts import OperatingPoint, Role
from harness.core.tokens import Split, TokenSet
from harness.toolkit.fitted import AssignedExits


def concave_hull(depths: Sequence[int], right: Sequence[int]) -> list[int]:
    """Return the depths on the concave hull of right answers over depth, rising, from the first depth to the last.

    A depth is on the hull if no mix of a shallower and a deeper one is as good at its cost.

    Args:
        depths: rising.
        right: right answers on dev at each depth.
    """
    hull: list[tuple[int, int]] = []
    for depth, count in zip(depths, right, strict=True):
        # Whole numbers, so that points on one line are recognised.
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (depth - hull[-1][0]) <= (count - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((depth, count))
    return [depth for depth, _ in hull]


class ConstantDepth(BorrowedGeep, AssignedExits):
    """A mix of two constant depths that runs GEEP's mean layers of dev: the best choice that ignores the samples.

    The two depths are the neighbours of GEEP's mean layers on the concave hull of dev accuracy over constant depths. A hash
    of the content decides which samples have the deeper one, so that a sample's exit does not depend on the order.
    """

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        depths = [answer + 1 for answer in self.model.answers]
        right = dict(zip(depths, self.exits_on_dev(dev)[1].sum(1).tolist(), strict=True))
        sides = list(pairwise(concave_hull(depths, [*right.values()])))
        points = []
        for point in mirrored(self.geep, dev):
            mean = self.mean_layers(dev, point)
            shallow, deep = next(side for side in sides if mean <= side[1])
            share = (mean - shallow) / (deep - shallow)
            accuracy = ((1 - share) * right[shallow] + share * right[deep]) / len(dev)
            figures = {"dev_mean_layers": mean, "dev_accuracy": accuracy}  # expected over the choice of samples
            mix = {"shallow": shallow, "deep": deep, "share": share}
            points.append(OperatingPoint(point.name, {**point.params, **mix, **figures}))
        return points

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return layer indices, int16 [N]: layer ``deep`` for ``share`` of the samples, ``shallow`` for the others."""
        exits = torch.full((len(tokens),), at.params["shallow"] - 1, dtype=torch.int16, device=tokens.device)
        deeper = round(at.params["share"] * len(tokens))
        exits[len(tokens) - deeper :] = at.params["deep"] - 1
        return exits_by_rank(exits, content_hash(tokens))


class ConstantControl(GeepControl):
    """Every sample exits at one of two layers, independent of its text, with GEEP's heads."""

    name = "control-constant"
    version = 2
    role: Role = "constant-depth"
    borrowed = ConstantDepth
