"""One look (ours): every sample runs one layer and its head, and a table of that answer assigns its exit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from geep.exit_table.rows import COUNT_LIMIT
from geep.exit_table.rules import UNIT
from geep.look_table import LookTable
from geep.method import TUNING, FittedGeep
from geep.predictor import DevView
from geep.table_rows import TableSettings, choose_rows
from harness.contracts import OperatingPoint, Predictions, Role
from harness.core.clock import Phases
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.run_pass import Answered
from harness.toolkit.base_method import BaseMethod, Teachers
from harness.toolkit.budgets import Candidate, points_at_budgets
from harness.toolkit.distillation import teacher_of_kind
from harness.toolkit.fitted import ChosenPoints, FittedModel, read_points, reading, write_points
from harness.toolkit.method_settings import SpeedBudgetSettings, speed_name

TABLE = "table"
# Prices of a layer to try, in 1 / UNIT of an agreement: from free to that of an answer.
PRICES = tuple(sorted({0, *np.geomspace(1, UNIT, 300).round().astype(int).tolist()}))


class GeepLookSettings(SpeedBudgetSettings):
    """Settings of ``geep-look1``. At a speed it runs as many layers on dev as the sequential exit with that threshold."""

    look: int = Field(1, ge=1, description="layers that every sample runs before the look; a head must follow them")
    bins: int = Field(12, ge=1, le=1024, description="bins of the entropy at the look")
    buckets: int = Field(3, ge=1, le=64, description="buckets of the length")
    smoothing: int = Field(8, ge=0, le=COUNT_LIMIT // 64, description="samples of the average row added to every key")
    table_rows: Literal["auto", "train", "holdout", "unlabelled"] = Field(
        "auto",
        description="rows whose agreement fills the table; holdout: those that the weights' own holdout kept from training; auto: "
        "rows that training did not see, holdout if there are such, else rows without labels, or train where there are none",
    )
    most_rows: int = Field(4000, ge=1, description="rows that fill the table, at most")

    def rows_of(self, task: Task, holdout: float) -> TableSettings:
        """Return the rows to use for a task.

        Args:
            holdout: share of train that the weights have not seen.

        Raises:
            ConfigError: held-out rows are asked for, but there are none.
        """
        rows = self.table_rows
        if rows == "auto":
            rows = "holdout" if holdout else "train" if task.unlabelled is None else "unlabelled"
        if rows == "holdout" and not holdout:
            raise ConfigError(
                "method 'geep-look1': table_rows = \"holdout\", but the weights that it needs have seen all of train: set holdout "
                "of 'geep', e.g. to 0.2, or other table_rows"
            )
        return TableSettings(table_rows=rows, holdout=holdout if rows == "holdout" else 0.0, folds=0)


@dataclass(frozen=True)
class PricedLayers(Candidate):
    """A price of a layer (``threshold``), and what it does on dev; ``agreement`` is with full depth."""

    agreement: float

    @property
    def params(self) -> dict[str, Any]:
        return {"price": int(self.threshold), "dev_agreement": self.agreement}


def priced(exits: np.ndarray, view: DevView) -> list[PricedLayers]:
    """Return what every price does on dev, prices rising.

    Args:
        exits: int16 [N, Q], of the dev rows at :data:`PRICES`.
    """
    layers, accuracy = view.outcomes(exits)
    agreement = view.agrees[view.position(exits), np.arange(len(exits))[:, None]].mean(0)
    found = zip(PRICES, layers.tolist(), accuracy.tolist(), agreement.tolist(), strict=True)
    return [PricedLayers(*one) for one in found]


def nearest(layers: float, candidates: list[PricedLayers]) -> PricedLayers:
    """Return the candidate whose mean layers are nearest to ``layers``, with the larger agreement on ties."""
    return min(candidates, key=lambda one: (round(abs(one.layers - layers), 6), -one.agreement))


@dataclass
class FittedLook(ChosenPoints):
    """Another method's model and a table of its answers at the look. Saves points and table: the model is saved by its method."""

    executor = "look-once"

    table: LookTable = field(kw_only=True)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return self.predict_others(tokens, at=at, answered=None, phases=Phases(tokens.device))

    def predict_others(
        self, tokens: TokenSet, *, at: OperatingPoint, answered: Answered | None, phases: Phases
    ) -> Predictions:
        """Answer all samples, those in ``answered`` as it says; see :class:`harness.toolkit.fitted.RunsOthers`."""
        prices = (at.params["price"],)

        def decide(logits: Tensor, lengths: Tensor) -> Tensor:
            return self.table.exits(logits, lengths, prices)[:, 0]

        return run_look_once(
            self.model, tokens, self.table.look, decide, at.execution, phases=phases, answered=answered
        )

    def key_hits(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[int, int]:
        """Return the number of these samples' keys with a row of their own, and of all keys; not timed."""
        hits: list[tuple[int, int]] = []

        def decide(logits: Tensor, lengths: Tensor) -> Tensor:
            exits = self.table.exits(logits, lengths, (UNIT,))[:, 0]
            hits.append(self.table.table.hits())
            return exits.clamp(max=self.table.look)  # nothing has to run beyond the look

        run_look_once(self.model, tokens, self.table.look, decide, at.execution)
        return sum(found for found, _ in hits), sum(asked for _, asked in hits)

    def save(self, folder: Path) -> None:
        write_points(self.points, folder / "points.json")
        place = folder / TABLE
        place.mkdir()
        self.table.save(place)


class GeepLook(BaseMethod[GeepLookSettings]):
    """Run one layer and its head; a binned table of that answer assigns the exit; sort again, answer there. Trains nothing."""

    name = "geep-look1"
    role: Role = "verifies-exits"
    needs: tuple[str, ...] = ("geep",)
    settings = GeepLookSettings
    fitted = FittedLook

    def uses_unlabelled(self, config: dict[str, Any]) -> bool:
        """Return whether the table may be filled from rows without labels."""
        return config.get("table_rows", "auto") in ("auto", "unlabelled")

    def learn(self, own: GeepLookSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedLook:
        """Fill the table, then choose the price of a layer on dev: for every speed, then for every budget."""
        model = _model(teachers)
        look = own.look - 1
        if look not in model.exits:
            raise ConfigError(
                f"method 'geep-look1': look = {own.look} is after a layer without an exit: choose one of "
                f"{[layer + 1 for layer in model.exits]}"
            )
        held = teachers["geep"]
        holdout = 0.0
        if isinstance(held, FittedGeep):
            # Under its own seed, a variant may have kept other rows from training than this seed would choose.
            holdout, seed = held.holdout, seed if held.holdout_seed is None else held.holdout_seed
        _, rows = choose_rows(task, own.rows_of(task, holdout), seed)
        rows = rows.select(np.linspace(0, len(rows) - 1, min(own.most_rows, len(rows))).round().astype(np.int64))
        observed = exit_logits(model, rows, TUNING)
        table = LookTable.fill(
            observed,
            rows.lengths,
            model.answers,
            look,
            bins=own.bins,
            buckets=own.buckets,
            smoothing=own.smoothing,
        )
        logits = exit_logits(model, task.dev.tokens, TUNING)
        view = DevView.of(logits, task.dev.labels, model.answers, model.depth)
        seen = logits[model.answers.index(look)], task.dev.tokens.lengths.cpu()
        candidates = priced(table.exits(*seen, PRICES).numpy(), view)
        fitted = FittedLook(model, None, table=table)
        for speed in own.speeds:
            one = nearest(view.sequential_layers(speed), candidates)
            figures = {"dev_mean_layers": one.layers, "dev_accuracy": one.accuracy}
            fitted.points.append(OperatingPoint(speed_name(speed), {"speed": speed, **one.params, **figures}))
        fitted.points += points_at_budgets(candidates, own.budgets, model.depth, len(task.dev), lambda one: one.params)
        return fitted

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> FittedLook:
        model = _model(teachers)
        with reading(folder):
            table = LookTable.load(folder / TABLE, model.depth)
            return FittedLook(model, None, read_points(folder / "points.json"), table=table)


def _model(teachers: Teachers) -> MultiExitModel:
    needs = "geep-look1 needs a method with early exits, by default 'geep'"
    return teacher_of_kind(FittedModel, teachers, "geep", needs, "name one in its needs").model
