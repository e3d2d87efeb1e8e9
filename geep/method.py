"""GEEP as the paper describes it: one-step training, exit table, predicted exits, sorted batches. Settings have our variants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.columns import MAX_LAYERS
from geep.exit_table.keys import MAX_NGRAM
from geep.exit_table.rows import COUNT_LIMIT
from geep.objective import Objective, PathWeights, shared_exit_loss
from geep.predictor import QUANTILES, DevView, budget_points, budget_speeds, build_table, tune_quantile
from geep.table_rows import TableSettings, choose_rows
from harness.contracts import Execution, OperatingPoint, Role
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.run_pass import Answer
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.budgets import budget_name
from harness.toolkit.dev_scores import exits_score
from harness.toolkit.distillation import fine_tuned
from harness.toolkit.fitted import AssignedExits, FittedModel, load_model, read_points, reading
from harness.toolkit.method_settings import Head, SpeedBudgetSettings, speed_name
from harness.toolkit.training import TrainingReport, train

TUNING = Execution(batch_size=64)


class GeepSettings(TableSettings, SpeedBudgetSettings):
    """Settings of GEEP. ``speeds`` are the entropy thresholds at which exit tables are built."""

    head: Head = Field("fastbert", description="kind of classifier head")
    exits: int | None = Field(None, ge=1, description="number of student exits E; by default L - 2, the most")
    ngram: int = Field(1, ge=1, le=MAX_NGRAM, description="longest key, in tokens")
    min_count: int = Field(2, ge=1, le=COUNT_LIMIT - 1, description="samples that a key needs for its own row")
    smoothing: int = Field(8, ge=0, le=COUNT_LIMIT - 1, description="weight of the back-off row in every row")
    start: Literal["backbone", "bert"] = Field(
        "backbone", description='weights to start from; bert: the fine-tuned full-depth path, with needs = ["bert"]'
    )
    path_weights: PathWeights = Field(
        "equal", description="weights of the paths' losses; rising: deeper paths count more"
    )
    student_gradient: bool = Field(True, description="false: the students' losses do not reach the encoder")
    equilibrium: bool = Field(False, description="true: gradients of the paths are balanced at every layer")

    @property
    def point_names(self) -> list[str]:
        at_speeds = [f"{speed_name(speed)}{answer}" for speed in self.speeds for answer in ("", "/shared")]
        return [*at_speeds, *map(budget_name, self.budgets)]


@dataclass
class FittedGeep(AssignedExits):
    """A trained multi-exit model, one exit table per speed, and the points that were tuned on dev: at speeds, then at budgets."""

    tables: dict[float, ExitTable] = field(default_factory=dict)

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return the q-quantile of the summed distributions of a sample's tokens: int16 [N]."""
        return self.tables[at.params["speed"]].predict(tokens, at.params["quantile"])

    def key_hits(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[int, int]:
        """Return the number of these samples' keys with a row of their own, and of all keys; not timed."""
        table = self.tables[at.params["speed"]]
        table.predict(tokens, at.params["quantile"])
        return table.hits()

    def save(self, folder: Path) -> None:
        super().save(folder)
        for speed, table in self.tables.items():
            place = folder / f"table-{speed:g}"
            place.mkdir()
            table.save(place)
        (folder / "geep.json").write_text(json.dumps({"speeds": list(self.tables)}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            speeds = read_json(folder / "geep.json")["speeds"]
            tables = {speed: ExitTable.load(folder / f"table-{speed:g}", num_layers=model.depth) for speed in speeds}
            return cls(model, report, read_points(folder / "points.json"), tables)


class Geep(StagedMethod[GeepSettings]):
    """One-step shared exit loss; exits predicted from tokens; batches sorted by predicted exit."""

    name = "geep"
    version = 3
    role: Role = "predicts-exits"
    # Not holdout: those rows are kept from training.
    choices = StagedMethod.choices | {"table_rows", "ngram", "min_count", "smoothing"}
    settings = GeepSettings
    fitted = FittedGeep

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the tables are filled from rows without labels."""
        return config.get("table_rows") == "unlabelled"

    def learn(self, own: GeepSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedGeep:
        """Train in one step."""
        depth = backbone.shape.layers
        if not 3 <= depth <= MAX_LAYERS:
            raise ConfigError(
                f"geep needs 3 to {MAX_LAYERS} layers, {backbone.name} has {depth}: choose another backbone"
            )
        # The last layer has the teacher, and the layer before it has no student.
        exits = own.exits or depth - 2
        if exits > depth - 2:
            raise ConfigError(f"method 'geep': exits = {exits} do not fit {depth} layers: choose from 1..{depth - 2}")
        train_rows, _ = choose_rows(task, own, seed)
        torch.manual_seed(seed)
        model = MultiExitModel(backbone.encoder(), task.num_labels, range(exits), own.head)
        first = warm_start(model, teachers, own.head) if own.start == "bert" else None
        objective = Objective(own.path_weights, own.student_gradient, own.equilibrium)

        report = train(
            model,
            lambda tokens, layout, labels: shared_exit_loss(model, tokens, layout, labels, objective),
            train_rows,
            own,
            seed=seed,
            name=f"geep {task.name}",
            evaluate=lambda: exits_score(model, task.dev),
        )
        return FittedGeep(model, report if first is None else first + report)

    def decide(self, own: GeepSettings, weights: FittedModel, task: Task, seed: int) -> FittedGeep:
        """Fill one table per speed and budget (:mod:`geep.table_rows`), tune quantiles on dev."""
        model, depth = weights.model, weights.model.depth
        fitted = FittedGeep(model, weights.training)
        _, table_rows = choose_rows(task, own, seed)
        observed = exit_logits(model, table_rows, TUNING)
        answers: tuple[Answer, ...] = ("student", "shared")
        views = {
            answer: DevView.of(
                exit_logits(model, task.dev.tokens, TUNING, answer=answer), task.dev.labels, model.answers, depth
            )
            for answer in answers
        }
        on_dev = {}
        # Where entropies lie above all speeds, their tables predict full depth only, which meets no budget.
        for speed in dict.fromkeys((*own.speeds, *budget_speeds(views["student"], own.budgets))):
            counting = {"ngram": own.ngram, "min_count": own.min_count, "smoothing": own.smoothing}
            table = build_table(table_rows, observed, model.answers, speed, depth, **counting)
            fitted.tables[speed] = table
            predicted = on_dev[speed] = table.quantiles(task.dev.tokens, QUANTILES).cpu().numpy()
            if speed not in own.speeds:
                continue  # a table for budgets alone
            budget = views["student"].sequential_layers(speed)
            for answer, view in views.items():
                quantile, layers, accuracy = tune_quantile(predicted, view, budget, extra=int(answer == "shared"))
                fitted.points.append(
                    OperatingPoint(
                        speed_name(speed) + ("/shared" if answer == "shared" else ""),
                        {
                            "speed": speed,
                            "quantile": quantile,
                            "answer": answer,
                            "dev_mean_layers": layers,
                            "dev_accuracy": accuracy,
                        },
                    )
                )
        fitted.points += budget_points(on_dev, views["student"], own.budgets)
        return fitted


def warm_start(model: MultiExitModel, teachers: Teachers, head: Head) -> TrainingReport | None:
    """Copy the encoder and the head of the fine-tuned ``bert`` into the full-depth path; return what its training cost.

    Raises:
        ConfigError: there is no such teacher, or its head is of another kind.
    """
    tuned = fine_tuned("geep with start = 'bert'", teachers, head=head)
    model.encoder.load_state_dict(tuned.model.encoder.state_dict())
    model.teacher.load_state_dict(tuned.model.teacher.state_dict())
    return tuned.training
