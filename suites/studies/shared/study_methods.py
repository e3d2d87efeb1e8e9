"""The methods of a study: fitted, at one operating point each, with every executor that they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from harness.contracts import (
    EngineName,
    Execution,
    Fitted,
    Foresees,
    HasExecutor,
    Kind,
    OperatingPoint,
)
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.engines.choice import EXECUTORS, KEYS, execution_on
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_sequential
from harness.measure.passes import Contender, TimedPass, timed_pass
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit.fitted import AssignedExits

PREDICTOR = "geep"  # samples are ordered by the exits that this method predicts


@dataclass
class StudyMethod:
    """A fitted method at one operating point with one executor.

    Attributes:
        kind: ``"bound"`` for a method that looks ahead.
        executor: one of the choices that the method leaves to the run, else its own.
        foresight: int16 [N] on the device, by sample: exits that a bound looked up beforehand, untimed.
        engine: of the method; ``None``: as the execution says.
    """

    method: str
    kind: Kind
    fitted: Fitted
    point: OperatingPoint
    executor: str
    foresight: Tensor | None = None
    engine: EngineName | None = None

    @property
    def label(self) -> str:
        """A short, unique name: method, point if there are several, executor if there is a choice."""
        parts = [self.method, *([] if self.point.name == "full" else [self.point.name])]
        return " ".join([*parts, *([self.executor] if self.executor in KEYS else [])])

    def at(self, execution: Execution, samples: np.ndarray) -> OperatingPoint:
        """Return the point with these execution settings, for these samples (int64 [M])."""
        way = execution_on(self.engine, execution, self.executor)
        seen = None
        if self.foresight is not None:
            seen = self.foresight[torch.as_tensor(samples, device=self.foresight.device)]
        return replace(self.point, execution=way, foresight=seen)

    def run(self, tokens: TokenSet, samples: np.ndarray, execution: Execution, through: Any = None) -> TimedPass:
        """Make one timed pass over ``tokens``; ``samples`` are their numbers, int64 [M].

        Args:
            through: an object whose ``predict`` wraps that of the method.
        """
        method = cast(Fitted, _PredictOnly(through or self.fitted))
        return timed_pass(Contender(method, self.at(execution, samples)), tokens)


@dataclass(frozen=True)
class _PredictOnly:
    """A method without ``foresee``, because foresight was looked up before."""

    fitted: Any

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Any:
        return self.fitted.predict(tokens, at=at)


def point_at(method: str, points: Sequence[OperatingPoint], speed: float) -> OperatingPoint:
    """Return the first point at ``speed``, or the first point of a method without speeds.

    Raises:
        ConfigError: the method has speeds, but not this one.
    """
    speeds = [point.params.get("speed") for point in points]
    if speed in speeds:
        return points[speeds.index(speed)]
    if any(known is not None for known in speeds):
        has = ", ".join(f"{known:g}" for known in dict.fromkeys(speeds) if known is not None)
        raise ConfigError(f"method '{method}' has no point at speed {speed:g}: it has {has} (--speed)")
    return points[0]


def entries(session: Session, methods: Sequence[str], speed: float) -> Iterator[StudyMethod]:
    """Yield all entries of the named methods: every executor for methods, the run's for controls and bounds."""
    for name in methods:
        fitted = session.fitted(name)
        point = point_at(name, session.points(name), speed)
        own = fitted.executor if isinstance(fitted, HasExecutor) else "own"
        kind: Kind = "bound" if isinstance(fitted, Foresees) else session.settings.profile.method_of(name).kind
        key, ways = EXECUTORS.get(own, ("", (own,)))
        if key and (chosen := session.settings.profile.executor(name)):
            ways = (chosen,)
        elif key and kind != "method":
            ways = (getattr(session.settings.execution, key),)
        for way in ways:
            yield StudyMethod(name, kind, fitted, point, way, engine=session.settings.profile.engine(name))


@dataclass(frozen=True)
class Probe:
    """Results of an untimed pass of an entry, by sample.

    Attributes:
        labels: int64 [N].
        exits: int16 [N], layer indices.
        predicted: int16 [N], exits predicted beforehand, or ``None``.
    """

    labels: np.ndarray
    exits: np.ndarray
    predicted: np.ndarray | None

    @property
    def sorts(self) -> bool:
        """Whether the method predicts exits that differ, and thus sorts by them."""
        return self.predicted is not None and bool(np.ptp(self.predicted))

    @property
    def leaves_early(self) -> bool:
        """Whether samples exit at different layers."""
        return bool(np.ptp(self.exits))


class StudySamples:
    """Test samples of one dataset, the methods that run on them, and a probe of each method.

    Args:
        count: number of samples, drawn with seed 0; ``None``: all.
        batch_size: of untimed passes.
    """

    def __init__(
        self, session: Session, methods: Sequence[str], speed: float, count: int | None, batch_size: int
    ) -> None:
        self.session, self.speed = session, speed
        test = session.prepared.test
        rows = np.arange(len(test))
        if count is not None and count < len(rows):
            rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:count])
        self.tokens = test.tokens.select(rows)
        self.labels = test.labels.numpy()[rows]
        self._untimed = replace(session.settings.execution, batch_size=batch_size, protocol="modern", compute="eager")
        self.entries = list(entries(session, methods, speed))
        self.probes = {entry.label: self._probe(entry) for entry in self.entries}

    def __len__(self) -> int:
        return len(self.tokens)

    def _probe(self, entry: StudyMethod) -> Probe:
        everything = np.arange(len(self))
        if isinstance(entry.fitted, Foresees):
            entry.foresight = entry.fitted.foresee(self.tokens, at=replace(entry.point, execution=self._untimed))
        found = entry.run(self.tokens, everything, self._untimed).predictions
        return Probe(found.logits.argmax(1), found.exit_layer, found.predicted_exit)

    @cached_property
    def predictor(self) -> tuple[AssignedExits, OperatingPoint]:
        """The predictor, and its point at the chosen speed.

        Raises:
            ConfigError: the method of this name assigns no exits.
        """
        fitted = self.session.fit(PREDICTOR)
        if not isinstance(fitted, AssignedExits):
            raise ConfigError(
                f"order 'predicted' needs a '{PREDICTOR}' that assigns exits, got {type(fitted).__name__}"
            )
        return fitted, point_at(PREDICTOR, list(fitted.operating_points(self.session.prepared.task.dev)), self.speed)

    def predict(self, tokens: TokenSet) -> Tensor:
        """Return the predictor's exits, int16 [M] on the device."""
        fitted, point = self.predictor
        return fitted.assign(tokens, at=point)

    @cached_property
    def sequential(self) -> np.ndarray:
        """The exits of the sequential rule on the predictor's weights, which it tries to predict: int16 [N]."""
        fitted, point = self.predictor
        rule = Entropy(point.params.get("speed", self.speed))
        return run_sequential(fitted.model, self.tokens, self._untimed, rule).exit_layer

    def foreseen(self, entry: StudyMethod) -> tuple[np.ndarray, str]:
        """Return the exits of order ``oracle`` (int16 [N]), and their origin.

        A method that determines exits layer by layer, or a bound, is ordered by its own exits. If all exits are equal or
        predicted, those of the sequential rule on the predictor's weights are used.
        """
        probe = self.probes[entry.label]
        if probe.leaves_early and (entry.kind == "bound" or not isinstance(entry.fitted, AssignedExits)):
            return probe.exits, "its own exits"
        return self.sequential, f"sequential exits on {PREDICTOR}'s weights"


def with_protocol(settings: Settings, protocol: str) -> Settings:
    """Return the settings under another protocol, on which ``compute`` may depend."""
    execution = settings.profile.execution.model_copy(update={"protocol": protocol})
    return replace(settings, profile=settings.profile.model_copy(update={"execution": execution}))
