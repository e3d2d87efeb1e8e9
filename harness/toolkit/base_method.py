"""Base classes of methods. They hold what all methods share, so that a method's file states only its idea."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self

from typing_extensions import TypeVar

from harness.contracts import Fitted, Kind
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.fitted import FittedModel
from harness.toolkit.method_settings import MethodSettings


class Storable(Protocol):
    """A fitted method whose class reads what it saved."""

    def save(self, folder: Path) -> None: ...
    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        """Raises :class:`~harness.core.errors.ResultError` if a file is missing or damaged."""
        ...


S = TypeVar("S", bound=MethodSettings, default=MethodSettings)
# What it fits: a model of the encoder, or another one (:mod:`harness.toolkit.text_models`).
F = TypeVar("F", bound=Storable, default=FittedModel)
Teachers = Mapping[str, Fitted]


class BaseMethod(ABC, Generic[S, F]):
    """A method whose settings are one strict model, and whose fitted class saves and loads itself.

    Attributes:
        settings: the model of its settings; validated before anything is trained.
        fitted: the class that :meth:`load` reads from disk.
    """

    name: ClassVar[str]
    kind: Kind = "method"
    needs: tuple[str, ...] = ()
    version = 1
    settings: type[S] = MethodSettings  # type: ignore[assignment]  # the default of S
    fitted: type[F]

    @abstractmethod
    def learn(self, own: S, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> F:
        """Train on ``task.train`` and choose on ``task.dev``, with validated settings.

        Raises:
            ConfigError: a setting does not fit the backbone, the task or a teacher.
            MethodError: the method cannot be used on this machine.
        """

    def fit(self, task: Task, backbone: Backbone, teachers: Teachers, *, config: Mapping[str, Any], seed: int) -> F:
        """Validate the settings, then :meth:`learn`.

        Raises:
            ConfigError: names every unknown or wrong setting; else as :meth:`learn`.
        """
        return self.learn(self.read(config), task, backbone, teachers, seed)

    def read(self, config: Mapping[str, Any]) -> S:
        """Validate settings; raises :class:`~harness.core.errors.ConfigError`."""
        return self.settings.read(config, f"method '{self.name}'")

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> F:
        """Read what the fitted class saved."""
        return self.fitted.load(folder, backbone.device)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        """Return the names of the operating points, which follow from the settings."""
        return self.read(config).point_names


class StagedMethod(BaseMethod[S, F]):
    """A method that learns in stages (:class:`~harness.contracts.LearnsInStages`): :meth:`learn` trains, :meth:`decide` chooses.

    Attributes:
        choices: the settings that :meth:`learn` does not use, by default those that only name operating points.
    """

    choices: frozenset[str] = frozenset({"speeds", "budgets"})
    weights_version = 1

    def decide(self, own: S, weights: F, task: Task, seed: int) -> F:
        """Choose on ``task.dev`` for what :meth:`learn` returned; by default, choose nothing."""
        return weights

    def fit(self, task: Task, backbone: Backbone, teachers: Teachers, *, config: Mapping[str, Any], seed: int) -> F:
        weights = self.train_weights(task, backbone, teachers, config=config, seed=seed)
        return self.choose(weights, task, config=config, seed=seed)

    def train_weights(
        self, task: Task, backbone: Backbone, teachers: Teachers, *, config: Mapping[str, Any], seed: int
    ) -> F:
        """Validate all settings, then :meth:`learn`; raises as :meth:`fit`."""
        return self.learn(self.read(config), task, backbone, teachers, seed)

    def choose(self, weights: F, task: Task, *, config: Mapping[str, Any], seed: int) -> F:
        """Validate the settings, then :meth:`decide`; raises as :meth:`fit`."""
        return self.decide(self.read(config), weights, task, seed)


class BorrowingMethod(BaseMethod[S, FittedModel]):
    """A method that runs another method's model: it learns nothing and stores nothing."""

    @abstractmethod
    def borrow(self, teachers: Teachers) -> FittedModel:
        """Return the fitted method around a teacher's model.

        Raises:
            ConfigError: the teacher is of another kind.
        """

    def learn(self, own: S, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedModel:
        return self.borrow(teachers)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> FittedModel:
        return self.borrow(teachers)
