"""Base classes of fitted methods, by how they decide when to stop: full depth, sequentially, or beforehand."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from harness.contracts import ASSIGNED, Compute, OperatingPoint, Predictions
from harness.core.clock import Phases
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, TokenSet
from harness.core.work import ModelCost
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.run_pass import Answer
from harness.execution.sequential import run_sequential
from harness.toolkit.training import TrainingReport

# FastBERT's Table 2 (ACL 2020) reports these.
SPEEDS = (0.1, 0.5, 0.8)


def checked_speeds(method: str, speeds: Any) -> tuple[float, ...]:
    """Entropy thresholds as floats.

    Raises:
        ConfigError: it is no list, there is none, one is no number in 0..1, or two bear the same name (``%g``).
    """
    if not isinstance(speeds, list | tuple):
        raise ConfigError(f"method '{method}': speeds = {speeds!r} is not a list: write speeds = [...]")
    wrong = [s for s in speeds if isinstance(s, bool) or not isinstance(s, int | float) or not 0 <= s <= 1]
    if wrong or not speeds:
        raise ConfigError(f"method '{method}': speeds {list(speeds)} make no sense: give at least one, each in 0..1")
    if len({f"{s:g}" for s in speeds}) < len(speeds):
        raise ConfigError(f"method '{method}': speeds {list(speeds)} name one twice: six digits must tell them apart")
    return tuple(float(s) for s in speeds)


@dataclass
class FittedModel:
    """A trained :class:`MultiExitModel` and what training it cost: the part that all fitted methods share.

    Attributes:
        model: in eval mode on its device.
        training: ``None`` for methods that only borrow another's model.
        executor: name of the executor, as stored with results.
        compute: how its blocks are run whatever the run says; ``None``: as the run says.
    """

    executor: ClassVar[str] = "own"
    compute: ClassVar[Compute | None] = None

    model: MultiExitModel
    training: TrainingReport | None = None

    @property
    def cost(self) -> ModelCost:
        return self.model.cost()

    def save(self, folder: Path) -> None:
        """Model and training report into an existing folder."""
        self.model.save(folder)
        report = None if self.training is None else asdict(self.training)
        (folder / "training.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def load_model(
    folder: Path, device: str, prepare: Callable[[MultiExitModel], object] | None = None
) -> tuple[MultiExitModel, TrainingReport | None]:
    """What :meth:`FittedModel.save` wrote.

    Args:
        prepare: see :meth:`MultiExitModel.load`.

    Raises:
        ResultError: a file is missing or damaged.
    """
    model = MultiExitModel.load(folder, device, prepare)
    try:
        facts: dict[str, Any] | None = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        if facts is not None:
            facts["dev_scores"] = tuple(facts["dev_scores"])
        return model, None if facts is None else TrainingReport(**facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error


class FullDepth(FittedModel):
    """Every layer, one head, one operating point."""

    executor = "full"

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("full")]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_full(self.model, tokens, at.execution)


@dataclass
class SequentialExits(FittedModel):
    """FastBERT's inference: normalised entropy at most ``speed`` after any exit layer."""

    executor = "shrink"

    speeds: tuple[float, ...] = SPEEDS

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint(f"speed={speed:g}", {"speed": speed}) for speed in self.speeds]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_sequential(self.model, tokens, at.execution, Entropy(at.params["speed"]))

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "speeds.json").write_text(json.dumps(self.speeds), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> SequentialExits:
        """What :meth:`save` wrote.

        Raises:
            ResultError: a file is missing or damaged.
        """
        model, report = load_model(folder, device)
        try:
            speeds = tuple(float(speed) for speed in json.loads((folder / "speeds.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
        return cls(model, report, speeds)


class AssignedExits(FittedModel, ABC):
    """The exit of every sample is known before it runs."""

    executor = ASSIGNED

    answer: Answer = "student"

    @abstractmethod
    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]: ...

    @abstractmethod
    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Exit layer index of every sample, int16 [N]; counted as part of the timed region."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        phases = Phases(tokens.device)
        with phases("predict"):
            exits = self.assign(tokens, at=at)
        answer: Answer = at.params.get("answer", self.answer)
        return run_assigned(self.model, tokens, exits, at.execution, answer=answer, phases=phases)
