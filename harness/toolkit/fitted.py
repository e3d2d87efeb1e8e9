"""Base classes of fitted methods, by how they decide when a sample stops: full depth, sequentially, or beforehand."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from safetensors import SafetensorError
from torch import Tensor

from harness.contracts import ASSIGNED, BY_RULE, Compute, OperatingPoint, Predictions
from harness.core.clock import Phases
from harness.core.errors import ConfigError, ResultError
from harness.core.text_formats import read_json
from harness.core.tokens import Split, TokenSet
from harness.core.work import ModelCost
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy, ExitRule
from harness.execution.regrouping.rebatch import run_by_rule
from harness.execution.run_pass import Answer, Answered
from harness.toolkit.method_settings import SPEEDS, speed_name
from harness.toolkit.training import TrainingReport


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn the errors of damaged or missing files into a :class:`ResultError` that says how to recover."""
    try:
        yield
    # ConfigError: a valid file of another model.
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        ConfigError,
    ) as error:
        raise ResultError(f"cannot load {folder}: {error!r}: delete that folder and run again") from error


def write_points(points: Sequence[OperatingPoint], place: Path) -> None:
    """Write names and parameters of operating points as JSON."""
    facts = [{"name": point.name, "params": dict(point.params)} for point in points]
    place.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_points(place: Path) -> list[OperatingPoint]:
    """Read what :func:`write_points` wrote; call it inside :func:`reading`."""
    return [OperatingPoint(point["name"], point["params"]) for point in read_json(place)]


@dataclass
class FittedModel:
    """A trained :class:`MultiExitModel` and what training it cost.

    Attributes:
        model: in eval mode on its device.
        training: ``None`` for methods that only borrow another's model.
        executor: name of the executor, as stored with results.
        compute: how its blocks run, whatever the run's setting is; ``None``: as the run's setting is.
        is_stack: whether the layers of its model run one after another; if not, only its own executor may run it.
    """

    executor: ClassVar[str] = "own"
    is_stack: ClassVar[bool] = True
    compute: ClassVar[Compute | None] = None

    model: MultiExitModel
    training: TrainingReport | None = None

    @property
    def cost(self) -> ModelCost:
        return self.model.cost()

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
        return cls(*load_model(folder, device))


def load_model(folder: Path, device: str) -> tuple[MultiExitModel, TrainingReport | None]:
    """Read what :meth:`FittedModel.save` wrote.

    Raises:
        ResultError: a file is missing or damaged.
    """
    return MultiExitModel.load(folder, device), read_training(folder)


def save_training(folder: Path, report: TrainingReport | None) -> None:
    """Write what training cost into the folder of a fit."""
    facts = None if report is None else asdict(report)
    (folder / "training.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_training(folder: Path) -> TrainingReport | None:
    """Read what :func:`save_training` wrote.

    Raises:
        ResultError: the file is missing or damaged.
    """
    with reading(folder):
        facts: dict[str, Any] | None = read_json(folder / "training.json")
        return None if facts is None else TrainingReport.of(facts)


class BorrowedModel(FittedModel):
    """Another method's model. Saves nothing: all weights belong to that method."""

    def save(self, folder: Path) -> None:
        """Save nothing."""


class FullDepth(FittedModel):
    """Every layer, one head, one operating point."""

    executor = "full"

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("full")]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_full(self.model, tokens, at.execution)


@dataclass
class ChosenPoints(FittedModel):
    """A model with operating points that were chosen when it was fitted.

    Attributes:
        points: saved beside the model.
    """

    points: list[OperatingPoint] = field(default_factory=list)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return self.points

    def save(self, folder: Path) -> None:
        super().save(folder)
        write_points(self.points, folder / "points.json")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            return cls(model, report, read_points(folder / "points.json"))


class RuleDriven(ChosenPoints, ABC):
    """A model that asks a head after every exit layer and follows an exit rule."""

    executor = BY_RULE

    @abstractmethod
    def rule_at(self, at: OperatingPoint) -> ExitRule:
        """Return the rule with the settings of an operating point."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_by_rule(self.model, tokens, at.execution, self.rule_at(at))


class SequentialExits(RuleDriven):
    """FastBERT's inference: a sample leaves after the first layer whose normalised entropy is at most the speed."""

    @classmethod
    def at_speeds(cls, model: MultiExitModel, report: TrainingReport | None, speeds: Sequence[float] = SPEEDS) -> Self:
        """Make one with an operating point per speed."""
        return cls(model, report, [OperatingPoint(speed_name(speed), {"speed": speed}) for speed in speeds])

    def rule_at(self, at: OperatingPoint) -> ExitRule:
        return Entropy(at.params["speed"])


@runtime_checkable
class RunsOthers(Protocol):
    """A fitted method that can leave out samples which are answered before layer 1, and runs the others."""

    model: MultiExitModel

    @property
    def executor(self) -> str: ...
    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]: ...
    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions: ...
    def predict_others(
        self, tokens: TokenSet, *, at: OperatingPoint, answered: Answered | None, phases: Phases
    ) -> Predictions:
        """Answer all samples, those in ``answered`` as it says; ``phases`` has what was timed before."""
        ...


class AssignedExits(ChosenPoints, ABC):
    """The exit of every sample is known before it runs."""

    executor = ASSIGNED

    answer: Answer = "student"

    @abstractmethod
    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return the exit layer index of every sample, int16 [N]; the call is part of the timed region."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return self.predict_others(tokens, at=at, answered=None, phases=Phases(tokens.device))

    def predict_others(
        self, tokens: TokenSet, *, at: OperatingPoint, answered: Answered | None, phases: Phases
    ) -> Predictions:
        with phases("predict"):
            exits = self.assign(tokens, at=at)
        answer: Answer = at.params.get("answer", self.answer)
        return run_assigned(self.model, tokens, exits, at.execution, answer=answer, phases=phases, answered=answered)
