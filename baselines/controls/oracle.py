"""Bound: the first layer that agrees with full depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from baselines.controls.borrowed_geep import BorrowedGeep, GeepControl
from harness.contracts import ASSIGNED, Kind, OperatingPoint, Predictions, Role
from harness.core.errors import ConfigError
from harness.core.tokens import Split, TokenSet
from harness.execution.executors import exit_logits, run_assigned
from harness.toolkit.method_settings import SpeedSettings


class OracleSettings(SpeedSettings):
    """Settings of the oracle, which has one operating point."""

    @property
    def point_names(self) -> list[str]:
        return ["agree"]


class AgreementOracle(BorrowedGeep):
    """Each sample exits at the first layer that already gives the full-depth answer.

    The exits are looked up outside the timed region with a full pass, without labels: the fewest layers at unchanged
    answers. This is a bound; it cannot be deployed.

    The harness also stores which layers are right for every sample. The first right layer of each is the bound of accuracy;
    it needs labels, so no method computes it.
    """

    executor = ASSIGNED

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("agree")]

    def foresee(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return the first layer index of every sample that agrees with full depth, int16 [N]."""
        layers, labels = self.depth_answers(tokens, at=at)
        first = (labels == labels[-1]).argmax(0)
        return torch.tensor(layers, dtype=torch.int16)[first].to(tokens.device)

    def depth_answers(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[Sequence[int], np.ndarray]:
        """Return the answering layers, and their labels for every sample, int64 [A, N]."""
        return self.model.answers, exit_logits(self.model, tokens, at.execution).argmax(-1).numpy()

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        if at.foresight is None:
            raise ConfigError("the oracle needs its foresight: call foresee before predict")
        return run_assigned(self.model, tokens, at.foresight, at.execution)


class Oracle(GeepControl[OracleSettings]):
    """Upper bound: every sample exits at the first layer that agrees with full depth."""

    name = "oracle"
    kind: Kind = "bound"
    role: Role = "oracle"
    settings = OracleSettings
    borrowed = AgreementOracle
