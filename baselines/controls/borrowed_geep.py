"""Base of all controls: they run GEEP's model at GEEP's operating points, with exits from another source.

Points have GEEP's names, so that rows compare at (nearly) equal mean layers. GEEP's points at speeds whose answer is the
shared one, and not that of a student head, are not mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from typing_extensions import TypeVar

from harness.contracts import Execution, Kind, OperatingPoint, Role
from harness.core.tokens import Split
from harness.execution.executors import exit_logits
from harness.toolkit.base_method import BorrowingMethod, Teachers
from harness.toolkit.distillation import teacher_of_kind
from harness.toolkit.fitted import AssignedExits, BorrowedModel
from harness.toolkit.method_settings import MethodSettings, SpeedBudgetSettings

TUNING = Execution(batch_size=64)
S = TypeVar("S", bound=MethodSettings, default=SpeedBudgetSettings)


def mirrored(geep: AssignedExits, dev: Split) -> list[OperatingPoint]:
    """Return GEEP's points that answer with a student head."""
    return [point for point in geep.operating_points(dev) if point.params.get("answer", "student") == "student"]


@dataclass
class BorrowedGeep(BorrowedModel):
    """GEEP's model, run with other exits.

    Attributes:
        geep: where model, points and histograms of exits come from.
    """

    geep: AssignedExits = field(kw_only=True)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return mirrored(self.geep, dev)

    def mean_layers(self, dev: Split, point: OperatingPoint) -> float:
        """Return the mean layers that GEEP runs on dev at a point."""
        return float(self.geep.assign(dev.tokens, at=point).double().mean()) + 1

    def exits_on_dev(self, dev: Split) -> tuple[Tensor, Tensor]:
        """Return the logits of every answering layer on dev, [A, N, C], and whether they are right, bool [A, N]."""
        logits = exit_logits(self.model, dev.tokens, TUNING)
        return logits, logits.argmax(-1) == dev.labels.cpu()


class GeepControl(BorrowingMethod[S]):
    """A simple alternative to GEEP's predictor, on the same weights. The predictor is useful only if it is better."""

    role: Role
    kind: Kind = "control"
    needs: tuple[str, ...] = ("geep",)
    settings: type[S] = SpeedBudgetSettings  # type: ignore[assignment]  # the default of S
    borrowed: ClassVar[type[BorrowedGeep]]

    def borrow(self, teachers: Teachers) -> BorrowedGeep:
        needs = f"{self.name} needs a 'geep' that assigns exits beforehand"
        geep = teacher_of_kind(AssignedExits, teachers, "geep", needs, "name one in its needs")  # type: ignore[type-abstract]
        return self.borrowed(geep.model, None, geep=geep)
