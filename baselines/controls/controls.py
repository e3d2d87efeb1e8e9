"""Rivals of the idea itself, on GEEP's own weights: what a predictor must beat to be worth anything (DESIGN section 3).

Each mirrors GEEP's operating points by name, so that rows compare at (nearly) equal mean layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.contracts import Fitted, Kind, OperatingPoint, Predictions
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits, run_assigned
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_sequential
from harness.registry import register
from harness.toolkit.fitted import ASSIGNED, SPEEDS, AssignedExits, FittedModel, checked_speeds
from harness.toolkit.training import own_settings


def mirrored(geep: AssignedExits, dev: Split) -> list[OperatingPoint]:
    """GEEP's points that answer with a student head."""
    return [point for point in geep.operating_points(dev) if point.params.get("answer", "student") == "student"]


@dataclass
class Borrowed(FittedModel):
    """A control: GEEP's model, nothing learnt, nothing stored."""

    geep: AssignedExits | None = None

    @property
    def source(self) -> AssignedExits:
        assert self.geep is not None
        return self.geep

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return mirrored(self.source, dev)

    def save(self, folder: Path) -> None:
        """Nothing of its own to keep."""


class AssignedControl(Borrowed, AssignedExits):
    """Exits that do not come from a predictor."""


class ConstantDepth(AssignedControl):
    """Everybody leaves at the answering layer nearest to GEEP's mean layers on dev."""

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        points = []
        for point in mirrored(self.source, dev):
            mean = float(self.source.assign(dev.tokens, at=point).float().mean())
            exit_layer = min(self.model.answers, key=lambda answer: (abs(answer - mean), answer))
            points.append(OperatingPoint(point.name, {**point.params, "exit": exit_layer}))
        return points

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        return torch.full((len(tokens),), int(at.params["exit"]), dtype=torch.int16, device=tokens.device)


def content_hash(tokens: TokenSet) -> Tensor:
    """A pseudo-random number per sample from its ids alone, int64 [N]: the same in any order of samples."""
    total = len(tokens.ids)  # said, so that a device need not be asked
    starts = torch.repeat_interleave(tokens.offsets[:-1], tokens.lengths, output_size=total)
    place = torch.arange(total, device=tokens.device) - starts
    # Position enters so that permuted words differ; shifts between products, as a polynomial of both would not tell
    # all permutations apart. Everything stays below 2^62.
    mixed = (tokens.ids.long() * 2654435761 + place * 40503 + 12345) % 2147483647
    for shift, factor in ((16, 2146121005), (15, 1252097743)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2147483647
    sums = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    samples = torch.arange(len(tokens), device=tokens.device)
    owner = torch.repeat_interleave(samples, tokens.lengths, output_size=total)
    return sums.index_add_(0, owner, mixed) * 48271 % 2147483647


class RankedExits(AssignedControl):
    """GEEP's own histogram of exits, dealt out in another order: the k-th in ``rank`` gets the k-th lowest exit."""

    @abstractmethod
    def rank(self, tokens: TokenSet) -> Tensor:
        """Sort key per sample, int64 [N]."""

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        exits = self.source.assign(tokens, at=at).sort().values
        return torch.empty_like(exits).index_copy_(0, self.rank(tokens).argsort(stable=True), exits)


class RandomExits(RankedExits):
    """Dealt out at random (by content, so that a sample gets the same exit in any order)."""

    def rank(self, tokens: TokenSet) -> Tensor:
        return content_hash(tokens)


class LengthExits(RankedExits):
    """Dealt out by length alone: the longest sample gets the deepest exit."""

    def rank(self, tokens: TokenSet) -> Tensor:
        return tokens.lengths * 2147483648 + content_hash(tokens)


class SequentialControl(Borrowed):
    """FastBERT's exit rule on GEEP's weights, at the entropy threshold that GEEP's table was built with."""

    executor = "shrink"

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_sequential(self.model, tokens, at.execution, Entropy(at.params["speed"]))


class Oracle(Borrowed):
    """Each sample leaves at the first layer that already gives the full-depth answer.

    It looks that up outside the timed region with a full pass, and needs no labels: the fewest layers at unchanged
    answers, a bound and not a method.
    """

    executor = ASSIGNED

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("agree")]

    def foresee(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """First agreeing answer of every sample, int16 [N]."""
        said = exit_logits(self.model, tokens, at.execution).argmax(-1)  # [A, N]
        return torch.tensor(self.model.answers, dtype=torch.int16)[(said == said[-1]).int().argmax(0)].to(tokens.device)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        if at.foresight is None:
            raise ConfigError("the oracle needs its foresight: call foresee before predict")
        return run_assigned(self.model, tokens, at.foresight, at.execution)


class _Control:
    """What all controls share: they fit by borrowing."""

    name: ClassVar[str]
    kind: Kind = "control"
    needs: tuple[str, ...] = ("geep",)
    version = 1
    fitted: ClassVar[type[Borrowed]]

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> Borrowed:
        """Borrow GEEP's model.

        Raises:
            ConfigError: a setting, where there is nothing to set, or a 'geep' that does not assign exits.
        """
        own_settings(self.name, config, {})
        return self._borrow(teachers)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Borrowed:
        return self._borrow(teachers)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [f"speed={speed:g}" for speed in checked_speeds(self.name, config.get("speeds", SPEEDS))]

    def _borrow(self, teachers: Mapping[str, Fitted]) -> Borrowed:
        geep = teachers["geep"]
        if not isinstance(geep, AssignedExits):
            raise ConfigError(f"{self.name} needs a 'geep' that assigns exits beforehand, got {type(geep).__name__}")
        return self.fitted(geep.model, None, geep)


@register
class ConstantControl(_Control):
    """Constant depth with the same heads."""

    name = "control-constant"
    fitted = ConstantDepth


@register
class RandomControl(_Control):
    """Random exits with GEEP's histogram."""

    name = "control-random"
    version = 2
    fitted = RandomExits


@register
class LengthControl(_Control):
    """GEEP's histogram, dealt out by length."""

    name = "control-length"
    version = 2
    fitted = LengthExits


@register
class EntropyControl(_Control):
    """Sequential entropy exit on GEEP's weights."""

    name = "control-sequential"
    fitted = SequentialControl


@register
class OracleBound(_Control):
    """The first layer that agrees with full depth."""

    name = "oracle"
    kind: Kind = "bound"
    fitted = Oracle

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return ["agree"]
