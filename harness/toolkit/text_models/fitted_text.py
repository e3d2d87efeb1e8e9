"""Base class of fitted methods around a model without Transformer layers, and of their methods."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from harness.contracts import Compute, OperatingPoint, Predictions
from harness.core.text_formats import read_json
from harness.core.tokens import Split, TokenSet
from harness.core.work import ModelCost
from harness.toolkit.fitted import reading
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
        report = None if self.training is None else asdict(self.training)
        (folder / "training.json").write_text(json.dumps(report, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ResultError: a file is missing or damaged.
        """
        model = cls.kind.load(folder, device)
        with reading(folder):
            facts = read_json(folder / "training.json")
            return cls(model, None if facts is None else TrainingReport.of(facts))
