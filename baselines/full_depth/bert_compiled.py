"""BERT with its blocks compiled by torch: the gain from ``torch.compile`` alone, on the same weights."""

from __future__ import annotations

from dataclasses import replace

from harness.contracts import OperatingPoint, Predictions
from harness.core.tokens import TokenSet
from harness.execution.executors import run_full
from harness.toolkit.base_method import BorrowingMethod, Teachers
from harness.toolkit.distillation import fitted_teacher
from harness.toolkit.fitted import BorrowedModel, FullDepth


class Compiled(BorrowedModel, FullDepth):
    """Another method's model at full depth, compiled also in a run whose other methods are not."""

    compute = "compiled"

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_full(self.model, tokens, replace(at.execution, compute="compiled"))


class BertCompiled(BorrowingMethod):
    """``bert`` with all but attention of every layer through ``torch.compile`` (one function for all layers and batch shapes).

    Compiling happens in the warm-up.
    """

    name = "bert-compiled"
    needs: tuple[str, ...] = ("bert",)

    def borrow(self, teachers: Teachers) -> Compiled:
        return Compiled(fitted_teacher(teachers).model)
