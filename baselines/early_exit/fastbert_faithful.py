"""FastBERT in its released inference loop: the gain of ``fastbert`` from tuning, on the same weights."""

from __future__ import annotations

from harness.contracts import OperatingPoint, Predictions
from harness.core.tokens import TokenSet
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_faithful
from harness.toolkit.base_method import BorrowingMethod, Teachers
from harness.toolkit.distillation import teacher_of_kind
from harness.toolkit.fitted import BorrowedModel, SequentialExits
from harness.toolkit.method_settings import SpeedSettings


class ReleasedLoop(BorrowedModel, SequentialExits):
    """FastBERT's model and operating points, run by another loop."""

    executor = "shrink-faithful"
    compute = "eager"

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_faithful(self.model, tokens, at.execution, Entropy(at.params["speed"]))


class FastBertFaithful(BorrowingMethod[SpeedSettings]):
    """``fastbert`` run as its authors released it: the host looks at every sample after every layer; blocks run eagerly.

    Batches shrink correctly (the release filters hidden states, mask and indices, too), so answers are those of
    ``fastbert``.
    """

    name = "fastbert-faithful"
    needs: tuple[str, ...] = ("fastbert",)
    settings = SpeedSettings
    fitted = ReleasedLoop

    def borrow(self, teachers: Teachers) -> ReleasedLoop:
        needs = f"{self.name} needs the method 'fastbert' of this project"
        tuned = teacher_of_kind(SequentialExits, teachers, "fastbert", needs, "name it in its needs")
        return ReleasedLoop(tuned.model, None, tuned.points)
