"""FastBERT in its released inference loop: what ``fastbert`` gains by being tuned, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contracts import Fitted, Kind, OperatingPoint, Predictions
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_faithful
from harness.registry import register
from harness.toolkit.fitted import SPEEDS, SequentialExits, checked_speeds
from harness.toolkit.training import own_settings


class ReleasedLoop(SequentialExits):
    """FastBERT's model and points, run another way; nothing learnt, nothing stored."""

    executor = "shrink-faithful"
    compute = "eager"

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_faithful(self.model, tokens, at.execution, Entropy(at.params["speed"]))

    def save(self, folder: Path) -> None:
        """Nothing of its own to keep."""


@register
class FastBertFaithful:
    """``fastbert`` run as its authors released it: the host looks at every sample after every layer; blocks run eagerly.

    Batches shrink correctly (the release filters hidden states, mask and indices, too), so answers are those of
    ``fastbert``. No settings of its own.
    """

    name = "fastbert-faithful"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("fastbert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> ReleasedLoop:
        """Take over what ``fastbert`` learnt.

        Raises:
            ConfigError: a setting that nobody reads, or a ``fastbert`` that is not the one of this project.
        """
        own_settings(self.name, config, {})
        return self._borrowed(teachers)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> ReleasedLoop:
        return self._borrowed(teachers)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [f"speed={speed:g}" for speed in checked_speeds(self.name, config.get("speeds", SPEEDS))]

    def _borrowed(self, teachers: Mapping[str, Fitted]) -> ReleasedLoop:
        tuned = teachers["fastbert"]
        if not isinstance(tuned, SequentialExits):
            raise ConfigError(f"{self.name} needs the method 'fastbert' of this project, got {type(tuned).__name__}")
        return ReleasedLoop(tuned.model, None, tuned.speeds)
