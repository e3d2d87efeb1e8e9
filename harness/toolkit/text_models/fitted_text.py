"""Base class of fitted methods around a model without Transformer layers, and of their methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from harness.contracts import Compute, OperatingPoint, Predictions
from harness.core.tokens import Split, TokenSet
from harness.core.work import ModelCost
from harness.toolkit.fitted import read_training, save_training
from harness.toolkit.text_models.text_model import TextModel
from harness.toolkit.text_models.text_pass import run_text
from harness.toolkit.training import TrainingReport


@dataclass
class FittedText:
    """A trained :class:`TextModel` and what training it cost; one operating point.

    Attributes:
        kind: class of the model, which :meth:`load` reads.
        model: in eval mode on its device.
        training: ``None`` if nothing was trained.
        compute: its blocks always run eagerly.
    """

    kind: ClassVar[type[TextModel]]
    executor: ClassVar[str] = "full"
    compute: ClassVar[Compute] = "eager"

    model: TextModel
    training: TrainingReport | None = None

    @property
    def cost(self) -> ModelCost:
        return self.model.cost()

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("full")]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_text(self.model, tokens, at.execution)

    def save(self, folder: Path) -> None:
        """Write model and training report into an existing folder."""
        self.model.save(folder)
        save_training(folder, self.training)

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ResultError: a file is missing or damaged.
        """
        return cls(cls.kind.load(folder, device), read_training(folder))
