"""BERT with its blocks compiled by torch: what ``torch.compile`` alone is worth, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.contracts import Fitted, Kind, OperatingPoint, Predictions
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.executors import run_full
from harness.registry import register
from harness.toolkit.distillation import fitted_teacher
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import own_settings


class Compiled(FullDepth):
    """Another's model at full depth, run compiled whatever the run does with the others; nothing learnt, nothing stored."""

    compute = "compiled"

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_full(self.model, tokens, replace(at.execution, compute="compiled"))

    def save(self, folder: Path) -> None:
        """Nothing of its own to keep."""


@register
class BertCompiled:
    """``bert`` with all but attention of every layer through ``torch.compile`` (one function for all layers and batch shapes).

    Compiling happens in the warm-up. No settings of its own.
    """

    name = "bert-compiled"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> Compiled:
        """Take over what ``bert`` learnt.

        Raises:
            ConfigError: a setting that nobody reads, or a ``bert`` that does not run on this chassis.
        """
        own_settings(self.name, config, {})
        return Compiled(fitted_teacher(teachers).model)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Compiled:
        return Compiled(fitted_teacher(teachers).model)

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return ["full"]
