"""GEEP as the paper describes it: one-step training, exit table, predicted exits, sorted batches. Our variants are settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.columns import MAX_LAYERS
from geep.exit_table.keys import MAX_NGRAM
from geep.exit_table.rows import COUNT_LIMIT
from geep.objective import Objective, PathWeights, shared_exit_loss
from geep.predictor import DevView, agreement_table, budget_points, budget_speeds, build_table, nearest
from geep.rule_choices import (
    RULE,
    Assignments,
    RuleName,
    rule_of_point,
    sequential_histograms,
    two_depths,
    with_cuts,
    with_prices,
    with_quantiles,
)
from geep.table_rows import TableSettings, choose_rows, folds_of
from harness.contracts import Execution, OperatingPoint, Role
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import Split, Task, TokenSet
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
AGREEMENT = "table-agreement"  # folder
CROSSED = "crossed.safetensors"


class GeepSettings(TableSettings, SpeedBudgetSettings):
    """Settings of GEEP. ``speeds`` are the entropy thresholds at which exit tables are built."""

    head: Head = Field("fastbert", description="kind of classifier head")
    exits: int | None = Field(None, ge=1, description="number of student exits E; by default L - 2, the most")
    rule: RuleName = Field(
        RULE,
        description="how a sample's summed rows become an exit; quantile: as in the paper; cuts: cut points on the expected "
        "exit; expected: least expected loss of agreement plus a price per layer",
    )
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
    student_labels: bool = Field(False, description="true: the students learn from the labels, too")

    @property
    def point_names(self) -> list[str]:
        at_speeds = [f"{speed_name(speed)}{answer}" for speed in self.speeds for answer in ("", "/shared")]
        return [*at_speeds, *map(budget_name, self.budgets)]


@dataclass
class FittedGeep(AssignedExits):
    """A trained multi-exit model, one exit table per speed, and the points that were tuned on dev: at speeds, then at budgets.

    Attributes:
        tables: by speed; under the rule ``expected`` all are one table.
        holdout: share of train that training has not seen, 0..0.5.
        holdout_seed: of the choice of these rows; ``None`` in fits of older versions.
        crossed: of weights with folds only: logits of all train rows, each from a model that was trained without it,
            float32 [A, N, C].
    """

    tables: dict[float, ExitTable] = field(default_factory=dict)
    crossed: Tensor | None = None
    holdout: float = 0.0
    holdout_seed: int | None = None
    _logits: dict[tuple[int, Answer], tuple[TokenSet, Tensor]] = field(default_factory=dict, repr=False)

    def exit_logits(self, tokens: TokenSet, answer: Answer = "student") -> Tensor:
        """Return the logits of every exit for these samples, [A, N, C]; kept, because other choices need them again."""
        key = (id(tokens), answer)
        if key not in self._logits:
            self._logits[key] = tokens, exit_logits(self.model, tokens, TUNING, answer=answer)
        return self._logits[key][1]

    def table_at(self, at: OperatingPoint) -> ExitTable:
        """Return the table of a point; one without a speed is that of agreement, which all speeds share."""
        return self.tables[at.params.get("speed", next(iter(self.tables)))]

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return the exits that the point's rule makes of the summed rows of a sample's tokens: int16 [N]."""
        return self.table_at(at).assign(tokens, rule_of_point(at.params))[:, 0]

    def key_hits(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[int, int]:
        """Return the number of these samples' keys with a row of their own, and of all keys; not timed."""
        self.assign(tokens, at=at)
        return self.table_at(at).hits()

    def save(self, folder: Path) -> None:
        super().save(folder)
        for name, table in self._files().items():
            place = folder / name
            place.mkdir()
            table.save(place)
        facts = {"speeds": list(self.tables), "holdout": self.holdout, "holdout_seed": self.holdout_seed}
        (folder / "geep.json").write_text(json.dumps(facts), encoding="utf-8")
        if self.crossed is not None:
            save_file({"logits": self.crossed.contiguous()}, folder / CROSSED)

    def _files(self) -> dict[str, ExitTable]:
        """Return tables by the names of their folders: one per speed, or one of agreement."""
        return {
            AGREEMENT if table.columns.agreement else f"table-{speed:g}": table for speed, table in self.tables.items()
        }

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            facts = read_json(folder / "geep.json")
            speeds, holdout = facts["speeds"], float(facts.get("holdout", 0.0))
            held_by = facts.get("holdout_seed")
            if (folder / AGREEMENT).is_dir():
                table = ExitTable.load(folder / AGREEMENT, num_layers=model.depth)
                tables = dict.fromkeys(speeds, table)
            else:
                tables = {
                    speed: ExitTable.load(folder / f"table-{speed:g}", num_layers=model.depth) for speed in speeds
                }
            crossed = load_file(folder / CROSSED)["logits"] if (folder / CROSSED).is_file() else None
            return cls(model, report, read_points(folder / "points.json"), tables, crossed, holdout, held_by)


class Geep(StagedMethod[GeepSettings]):
    """One-step shared exit loss; exits predicted from tokens; batches sorted by predicted exit."""

    name = "geep"
    version = 3
    role: Role = "predicts-exits"
    # Not holdout: those rows are kept from training.
    choices = StagedMethod.choices | {"rule", "table_rows", "ngram", "min_count", "smoothing"}
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
        objective = Objective(own.path_weights, own.student_gradient, own.equilibrium, own.student_labels)

        def trained(rows: Split, name: str) -> tuple[MultiExitModel, TrainingReport]:
            torch.manual_seed(seed)
            model = MultiExitModel(backbone.encoder(), task.num_labels, range(exits), own.head)
            first = warm_start(model, teachers, own.head) if own.start == "bert" else None
            report = train(
                model,
                lambda tokens, layout, labels: shared_exit_loss(model, tokens, layout, labels, objective),
                rows,
                own,
                seed=seed,
                name=name,
                evaluate=lambda: exits_score(model, task.dev),
            )
            return model, report if first is None else first + report

        model, report = trained(train_rows, f"geep {task.name}")
        if not own.crossed:
            return FittedGeep(model, report, holdout=own.holdout, holdout_seed=seed)
        crossed = torch.empty(0)
        for number, (rows, others) in enumerate(folds_of(train_rows, own.folds, seed), 1):
            other, cost = trained(rows, f"geep {task.name}, fold {number} of {own.folds}")
            report = cost + report  # scores stay those of the model that answers
            found = exit_logits(other, train_rows.tokens.select(others), TUNING).cpu()
            if number == 1:
                crossed = found.new_empty(len(found), len(train_rows), found.shape[-1])
            crossed[:, others] = found
        return FittedGeep(model, report, crossed=crossed)

    def decide(self, own: GeepSettings, weights: FittedModel, task: Task, seed: int) -> FittedGeep:
        """Fill the tables that the rule reads (:mod:`geep.table_rows`), and choose its settings on dev."""
        model, depth = weights.model, weights.model.depth
        fitted = FittedGeep(model, weights.training, holdout=own.holdout, holdout_seed=seed)
        _, table_rows = choose_rows(task, own, seed)
        assert isinstance(weights, FittedGeep)
        dev = task.dev.tokens
        observed = weights.crossed if own.crossed else weights.exit_logits(table_rows)
        assert observed is not None, "folds are part of the key of weights"
        answers: tuple[Answer, ...] = ("student", "shared")
        views = {
            answer: DevView.of(weights.exit_logits(dev, answer), task.dev.labels, model.answers, depth)
            for answer in answers
        }
        view = views["student"]
        counting = {"ngram": own.ngram, "min_count": own.min_count, "smoothing": own.smoothing}
        at_speeds: dict[float, Assignments] = {}
        at_budgets: dict[float | None, Assignments] = {}
        if own.rule == "expected":
            table = agreement_table(table_rows, observed, model.answers, depth, **counting)
            candidates = with_prices(table, dev, model.answers)
            fitted.tables = dict.fromkeys(own.speeds, table)
            at_speeds, at_budgets = dict.fromkeys(own.speeds, candidates), {None: candidates}
        else:
            # Where entropies lie above all speeds, their tables predict full depth only, which meets no budget.
            for speed in dict.fromkeys((*own.speeds, *budget_speeds(view, own.budgets))):
                table = fitted.tables[speed] = build_table(
                    table_rows, observed, model.answers, speed, depth, **counting
                )
                if own.rule == "quantile":
                    at_speeds[speed] = at_budgets[speed] = with_quantiles(table, dev)
                    continue
                at_speeds[speed] = with_cuts(table, dev, model.answers, sequential_histograms(view.entropy, [speed]))
                mixes = two_depths(len(dev), model.answers, [budget * depth for budget in own.budgets])
                at_budgets[speed] = at_speeds[speed] + with_cuts(table, dev, model.answers, mixes)
        for speed in own.speeds:  # other tables are for budgets alone
            for answer, its_view in views.items():
                candidates, budget = at_speeds[speed], view.sequential_layers(speed)
                best, layers, accuracy = nearest(candidates.exits, its_view, budget, extra=int(answer == "shared"))
                fitted.points.append(
                    OperatingPoint(
                        speed_name(speed) + ("/shared" if answer == "shared" else ""),
                        {
                            "speed": speed,
                            **candidates.settings[best],
                            "answer": answer,
                            "dev_mean_layers": layers,
                            "dev_accuracy": accuracy,
                        },
                    )
                )
        fitted.points += budget_points(at_budgets, view, own.budgets)
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
