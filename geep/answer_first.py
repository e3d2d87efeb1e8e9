"""Exit 0 (ours): a table of labels answers the samples that it is sure of before layer 1; another method runs the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from geep.exit_table.keys import MAX_NGRAM
from geep.exit_table.rows import COUNT_LIMIT
from geep.label_table import PERCENT, UNREACHABLE, VOTES, LabelTable
from geep.method import TUNING
from harness.contracts import OperatingPoint, Predictions, Role
from harness.core.clock import Phases
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.core.work import BEFORE
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits, run_full
from harness.toolkit.base_method import BaseMethod, Teachers
from harness.toolkit.budgets import points_at_budgets
from harness.toolkit.distillation import teacher_of_kind
from harness.toolkit.fitted import ChosenPoints, RunsOthers, read_points, reading, write_points
from harness.toolkit.method_settings import SpeedBudgetSettings
from harness.toolkit.rule_exits import Tried, calibrate

TABLE = "labels"
SHARES = np.arange(0.0, 1.0001, 0.05)  # of dev rows that are answered, tried for a budget


class GeepZeroSettings(SpeedBudgetSettings):
    """Settings of ``geep-zero``. Points are those of the method that runs the others, at its ``speeds`` and at budgets."""

    label_rows: Literal["auto", "train", "unlabelled"] = Field(
        "auto",
        description="rows whose answers of the last head fill the table; auto: train, and rows without labels where there are any",
    )
    most_rows: int = Field(10_000, ge=1, description="rows without labels that fill the table, at most")
    ngram: int = Field(2, ge=1, le=MAX_NGRAM, description="longest key, in tokens")
    min_count: int = Field(2, ge=1, le=COUNT_LIMIT // VOTES - 1, description="samples that a key needs for its own row")
    smoothing: int = Field(
        4, ge=0, le=COUNT_LIMIT // VOTES - 1, description="weight of the row of all samples in every row"
    )


def smallest_safe_margin(margins: np.ndarray, right: np.ndarray, right_full: np.ndarray) -> int:
    """Return the smallest margin from which on the answers are at most one standard error less accurate than full depth.

    The error is that of the paired difference over the answered samples. :data:`~geep.label_table.UNREACHABLE` if no margin is.

    Args:
        margins: int64 [N]; negative ones are never answered.
        right, right_full: bool [N], whether the table is right, and full depth.
    """
    order = np.argsort(-margins, kind="stable")
    order = order[margins[order] >= 0]
    if not len(order):
        return UNREACHABLE
    change = right[order].astype(np.float64) - right_full[order]
    count = np.arange(1, len(order) + 1)
    mean = change.cumsum() / count
    error = np.sqrt(np.maximum((change**2).cumsum() / count - mean**2, 0) / count)
    whole = np.append(np.diff(margins[order]) != 0, True)  # equal margins are answered together
    good = np.flatnonzero(whole & (mean >= -error - 1e-12))
    return int(margins[order[good[-1]]]) if len(good) else UNREACHABLE


def label_rows(own: GeepZeroSettings, task: Task) -> list[TokenSet]:
    """Return the rows whose answers fill the table.

    Raises:
        ConfigError: rows without labels are asked for, and there are none.
    """
    rows = task.unlabelled
    if own.label_rows == "train" or (own.label_rows == "auto" and rows is None):
        return [task.train.tokens]
    if rows is None:
        raise ConfigError(
            f"method 'geep-zero': label_rows = \"unlabelled\", but dataset '{task.name}' has no rows without labels: "
            "set --max-train below its train rows (and --max-unlabelled above 0), or add a file unlabelled.csv to its folder"
        )
    some = rows.select(np.linspace(0, len(rows) - 1, min(own.most_rows, len(rows))).round().astype(np.int64))
    return [some] if own.label_rows == "unlabelled" else [task.train.tokens, some]


def simulate(
    others: RunsOthers, point: OperatingPoint, dev: Split, margins: np.ndarray, right: np.ndarray
) -> Callable[[int], Tried]:
    """Run the others' point on all of dev; return what it does there for the margin from which on the table answers.

    Args:
        margins, right: of the table, int64 and bool [N].
    """
    found = others.predict(dev.tokens, at=replace(point, execution=TUNING))
    right_later = found.logits.argmax(1) == dev.labels.cpu().numpy()
    layers = found.exit_layer.astype(np.int64) + 1
    kept = {
        key: value for key, value in point.params.items() if key not in ("budget", "over_budget") and key[:4] != "dev_"
    }

    def ran(margin: int) -> Tried:
        sure = margins >= margin
        share, accuracy = float(sure.mean()), float(np.where(sure, right, right_later).mean())
        settings = {**kept, "margin": margin, "dev_answered": share}
        return Tried(margin, float(np.where(sure, 0, layers).mean()), accuracy, settings)

    return ran


def _others(teachers: Teachers) -> RunsOthers:
    needs = "geep-zero needs a method that can leave samples out, by default 'geep'"
    return teacher_of_kind(RunsOthers, teachers, "geep", needs, "name geep or geep-look1 in its needs")  # type: ignore[type-abstract]


@dataclass
class FittedZero(ChosenPoints):
    """Another method's model, what runs on it, and a table of labels. Saves points and table alone."""

    others: RunsOthers = field(kw_only=True)
    table: LabelTable = field(kw_only=True)

    @property
    def executor(self) -> str:  # type: ignore[override]  # that of the others
        return self.others.executor

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        phases = Phases(tokens.device)
        with phases("predict"):
            answered = self.table.answered(tokens, at.params["margin"])
        return self.others.predict_others(tokens, at=at, answered=answered, phases=phases)

    def depth_answers(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[Sequence[int], np.ndarray]:
        """Return the answering layers with :data:`BEFORE` for the table, and their labels for every sample, int64 [1 + A, N]."""
        first = self.table.logits(self.table.posterior(tokens)[0]).argmax(-1).cpu().numpy()
        later = exit_logits(self.model, tokens, at.execution).argmax(-1).numpy()
        return (BEFORE, *self.model.answers), np.concatenate([first[None], later])

    def key_hits(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[int, int]:
        """Return the number of these samples' keys with a row of their own, and of all keys; not timed."""
        self.table.posterior(tokens)
        return self.table.table.hits()

    def save(self, folder: Path) -> None:
        write_points(self.points, folder / "points.json")
        place = folder / TABLE
        place.mkdir()
        self.table.save(place)


class GeepZero(BaseMethod[GeepZeroSettings]):
    """A table of labels answers what it is sure of before layer 1; the others run as GEEP runs them. Trains nothing.

    A variant may replace ``geep`` by another method, such as ``geep-look1``, which then runs the others.
    """

    name = "geep-zero"
    role: Role = "predicts-exits"
    needs: tuple[str, ...] = ("geep",)
    settings = GeepZeroSettings
    fitted = FittedZero

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the table may be filled from rows without labels."""
        return config.get("label_rows", "auto") != "train"

    def learn(self, own: GeepZeroSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedZero:
        """Fill the table, then choose margins on dev: at speeds as good as full depth, at budgets what uses the budget best."""
        others, dev = _others(teachers), task.dev
        model = others.model
        parts = [(rows, torch.from_numpy(run_full(model, rows, TUNING).logits)) for rows in label_rows(own, task)]
        table = LabelTable.fill(parts, ngram=own.ngram, min_count=own.min_count, smoothing=own.smoothing)
        labels = dev.labels.cpu()
        posterior, margins = (part.cpu() for part in table.posterior(dev.tokens))
        (table.temperature,) = calibrate(PERCENT * posterior[None], labels)
        full = torch.from_numpy(run_full(model, dev.tokens, TUNING).logits)
        sides = [(answers.argmax(-1) == labels).numpy() for answers in (posterior, full)]
        margin = smallest_safe_margin(margins.numpy(), *sides)
        fitted = FittedZero(model, None, others=others, table=table)
        tried: list[Tried] = []
        for point in others.operating_points(dev):
            if point.params.get("answer", "student") != "student":
                continue
            ran = simulate(others, point, dev, margins.numpy(), sides[0])
            if "budget" not in point.params:
                one = ran(margin)
                figures = {"dev_mean_layers": one.layers, "dev_accuracy": one.accuracy}
                fitted.points.append(OperatingPoint(point.name, {**one.settings, **figures}))
            at = np.unique(np.quantile(margins.numpy(), SHARES, method="higher").clip(min=0))
            tried += [ran(int(one)) for one in (*at, UNREACHABLE)]
        fitted.points += points_at_budgets(tried, own.budgets, model.depth, len(dev), lambda one: one.settings)
        return fitted

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> FittedZero:
        others = _others(teachers)
        with reading(folder):
            table = LabelTable.load(folder / TABLE)
            return FittedZero(others.model, None, read_points(folder / "points.json"), others=others, table=table)
