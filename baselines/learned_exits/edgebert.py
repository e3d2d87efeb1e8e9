"""EdgeBERT's exit prediction (Tambe et al., MICRO 2021): the entropy after the first ramp looks up the layer that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import BY_RULE, OperatingPoint, Predictions
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.transfer import upload
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import ExitRule, Memory, Setting, candidate_thresholds, normalised_entropy
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.regrouping.rebatch import run_by_rule
from harness.toolkit.base_method import BaseMethod, Teachers
from harness.toolkit.budgets import points_at_budgets
from harness.toolkit.distillation import fitted_teacher
from harness.toolkit.fitted import ChosenPoints, read_points, reading, write_points
from harness.toolkit.method_settings import BudgetSettings
from harness.toolkit.rule_exits import APART, THRESHOLDS, TUNING, replayed

BINS = 100
HIDDEN = 64
TABLE = "entropies.safetensors"
Ramps = Literal["first", "all"]


class EdgeBertSettings(BudgetSettings):
    """Settings of EdgeBERT."""

    ramps: Ramps = Field(
        "first",
        description="first: no ramp runs between the first one and the predicted exit; all: every ramp runs, and a sample "
        "also leaves where its entropy is below the threshold, as the released code is evaluated",
    )
    table_rows: Literal["train", "unlabelled"] = Field(
        "train", description="rows whose entropies fill the table: train, as published, or rows without labels"
    )
    table_steps: int = Field(3000, ge=1, description="steps, of 32 rows each, of the network that fills the table")


def bins_of(entropy: Tensor) -> Tensor:
    """Return the nearest bin of normalised entropies: bin i is the entropy ``i / 100``."""
    return (entropy * BINS).round().long().clamp(0, BINS - 1)


def entropy_table(entropies: Tensor, steps: int, seed: int) -> Tensor:
    """Return the entropies to expect at the exits after the first, for every bin of the first one's: float32 [100, A - 2].

    A network 1 - 64 - 64 - 64 - 64 - (A - 2) with ReLU learns them (squared error, Adam) and fills the table, as in
    ``sw/Entropy_LUT`` of the released code. The last exit needs no entropy, because all samples leave there.

    Args:
        entropies: [A, N], normalised.
    """
    later = entropies[1:-1].T
    if not later.shape[1]:
        return torch.zeros(BINS, 0)
    torch.manual_seed(seed)
    sizes = [1, HIDDEN, HIDDEN, HIDDEN, HIDDEN]
    deep = [part for a, b in zip(sizes[:-1], sizes[1:], strict=True) for part in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*deep, nn.Linear(HIDDEN, later.shape[1]))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for rows in torch.randint(len(later), (steps, 32)):
        optimizer.zero_grad()
        F.mse_loss(network(entropies[0, rows, None]), later[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        found: Tensor = network(torch.arange(BINS)[:, None] / BINS)
    return found.clamp(min=0)


@dataclass(frozen=True)
class EntropyLookup(ExitRule):
    """A sample leaves at the first head if its entropy is below the threshold, else at the exit that the table predicts.

    This is the first exit with an expected entropy below the threshold, or the last exit.

    Attributes:
        table: as :func:`entropy_table` returns it, on the samples' device.
        between: whether a sample also leaves at an earlier head whose entropy is below the threshold.
    """

    threshold: Setting
    table: Tensor
    between: bool

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return normalised_entropy(logits)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        sure = score < self.threshold
        if place == 0:
            return sure, (self.predicted(score),)
        (predicted,) = memory
        return (predicted == place) | (sure & self.between), memory

    def predicted(self, entropy: Tensor) -> Tensor:
        """Return the place that the table predicts: [B] -> int64 [B], or [K, B] for thresholds [K, 1]."""
        threshold = self.threshold[..., None] if isinstance(self.threshold, Tensor) else self.threshold
        low = self.table < threshold  # [bins, A - 2] or [K, bins, A - 2]
        last = low.new_ones(*low.shape[:-1], 1)
        by_bin = torch.cat([low, last], -1).int().argmax(-1) + 1
        return by_bin[..., bins_of(entropy)]


@dataclass
class LookedUpExits(ChosenPoints):
    """Another method's model and a table of entropies. Saves the table and what was chosen on dev.

    Attributes:
        table: as :func:`entropy_table` returns it.
        ramps: see :class:`EdgeBertSettings`.
    """

    table: Tensor = field(default_factory=lambda: torch.zeros(BINS, 0))
    ramps: Ramps = "first"

    @property
    def executor(self) -> str:  # type: ignore[override]  # a class attribute elsewhere
        return "look-once" if self.ramps == "first" else BY_RULE

    def rule(self, threshold: Setting) -> EntropyLookup:
        """Return the rule at one threshold, or at several [K, 1], on the host."""
        return EntropyLookup(threshold, self.table, self.ramps == "all")

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        rule = replace(self.rule(at.params["threshold"]), table=upload(self.table.numpy(), tokens.device))
        if self.ramps == "all":
            return run_by_rule(self.model, tokens, at.execution, rule)
        answers = upload(np.array(self.model.answers, dtype=np.int16), tokens.device)

        def decide(logits: Tensor, lengths: Tensor) -> Tensor:
            entropy = normalised_entropy(logits)
            leaves, (place,) = rule.judge(0, entropy, ())
            return answers[torch.where(leaves, 0, place)]

        return run_look_once(self.model, tokens, self.model.exits[0], decide, at.execution)

    def save(self, folder: Path) -> None:
        write_points(self.points, folder / "points.json")
        save_file({"table": self.table.contiguous()}, folder / TABLE)


class EdgeBert(BaseMethod[EdgeBertSettings]):
    """The weights of ``deebert``: its first ramp's entropy predicts the exit of every sample that does not leave there.

    Only the exit prediction is EdgeBERT's. Its ramps are trained as DeeBERT's are (its code is built on that), so both share one
    training. Its pruning, adaptive attention spans, quantisation and voltage scaling are not included. Entropies are
    normalised, so that 100 bins cover any number of classes; the released table has steps of 0.01 nats, for two classes. The
    threshold is chosen on dev at budgets, as for all rules.
    """

    name = "edgebert"
    needs: tuple[str, ...] = ("deebert",)
    settings = EdgeBertSettings

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the table is filled from rows without labels."""
        return config.get("table_rows") == "unlabelled"

    def learn(
        self, own: EdgeBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> LookedUpExits:
        model = self._model(teachers)
        rows = task.train.tokens if own.table_rows == "train" else task.unlabelled
        if rows is None:
            raise ConfigError(
                f"{self.name}: table_rows = \"unlabelled\", but dataset '{task.name}' has no rows without labels: set "
                "--max-train, or add unlabelled.csv to the dataset"
            )
        entropies = normalised_entropy(exit_logits(model, rows, TUNING))
        fitted = LookedUpExits(model, table=entropy_table(entropies, own.table_steps, seed), ramps=own.ramps)
        fitted.points = self._points(fitted, own.budgets, task.dev)
        return fitted

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> LookedUpExits:
        model = self._model(teachers)
        with reading(folder):
            table, points = load_file(folder / TABLE)["table"], read_points(folder / "points.json")
            if table.shape != (BINS, len(model.answers) - 2):
                raise ValueError(f"{TABLE} is of another model")
            return LookedUpExits(model, None, points, table, points[0].params["ramps"])

    def _model(self, teachers: Teachers) -> MultiExitModel:
        model = fitted_teacher(teachers, "deebert").model
        if not model.exits:
            raise ConfigError(
                f"{self.name} needs weights with early exits, and these have none: name others in its needs"
            )
        return model

    def _points(self, fitted: LookedUpExits, budgets: Sequence[float], dev: Split) -> list[OperatingPoint]:
        logits = exit_logits(fitted.model, dev.tokens, TUNING)
        entropies = normalised_entropy(logits)
        read = entropies[:-1] if fitted.ramps == "all" else entropies[:1]
        levels = np.append(read.numpy(), fitted.table.numpy())
        thresholds = candidate_thresholds(levels, (0.0, 1.0), most=THRESHOLDS, apart=APART).tolist()
        options = [{"threshold": threshold, "ramps": fitted.ramps} for threshold in thresholds]
        rule = fitted.rule(torch.tensor(thresholds)[:, None])
        model, correct = fitted.model, logits.argmax(-1) == dev.labels
        tried = replayed(rule, entropies, correct, model.answers, options)
        return points_at_budgets(tried, budgets, model.depth, len(dev), lambda one: one.settings)
