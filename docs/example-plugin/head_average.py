"""A method for GEEP bench in one file: no sample exits early, and the last heads answer together.

An ensemble that costs a few heads more than full depth: the mean of the heads' log-probabilities (a product of experts; Hinton
2002), on the weights of ``fastbert``, whose heads are all trained to answer.
"""

import torch

from harness.contracts import OperatingPoint, Predictions
from harness.core.tokens import Split, TokenSet
from harness.execution.run_pass import Pass, inference
from harness.toolkit.base_method import BorrowingMethod
from harness.toolkit.distillation import fitted_teacher
from harness.toolkit.fitted import BorrowedModel, FullDepth


class LastHeads(BorrowedModel, FullDepth):
    """Another method's model at full depth."""

    def operating_points(self, dev: Split) -> list[OperatingPoint]:
        return [OperatingPoint(f"heads={n}", {"heads": n}) for n in (2, 3)]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        voters = self.model.answers[-at.params["heads"] :]
        with inference(self.model):
            run = Pass(self.model, tokens, at.execution)  # orders the samples, runs and counts blocks
            for first, last in run.batches():
                hidden, layout = run.begin(first, last)
                votes = []
                for index in range(self.model.depth):
                    hidden = run.layer(index, hidden, layout)
                    if index in voters:
                        votes.append(run.head(index, hidden, layout).log_softmax(-1))
                run.answer(slice(first, last), torch.stack(votes).mean(0), self.model.depth - 1)
            return run.predictions()


class HeadAverage(BorrowingMethod):
    """The last two and the last three heads of ``fastbert`` vote after full depth."""

    name, needs = "head-average", ("fastbert",)

    def borrow(self, teachers) -> LastHeads:
        return LastHeads(fitted_teacher(teachers, "fastbert").model)
