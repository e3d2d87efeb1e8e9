"""GEEP as the paper describes it: one-step training, exit table, predicted exits, sorted batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.keys import MAX_NGRAM
from geep.exit_table.rows import COUNT_LIMIT
from geep.exit_table.storage import MAX_LAYERS
from geep.objective import shared_exit_loss
from geep.predictor import QUANTILES, DevView, build_table, tune_quantile
from harness.contracts import Execution, Fitted, Kind, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.run_pass import Answer
from harness.registry import register
from harness.toolkit.fitted import SPEEDS, AssignedExits, checked_speeds, load_model
from harness.toolkit.training import Recipe, dev_accuracies, own_settings, train

TUNING = Execution(batch_size=64)
DEFAULTS: dict[str, Any] = {
    "exits": None,  # E: L - 2, the most there can be
    "speeds": SPEEDS,
    "ngram": 1,
    "min_count": 2,
    "smoothing": 8,
    "holdout": 0.0,  # as in the paper: tables see exits of the samples that were trained on
}


def whole(key: str, value: Any, low: int, high: int) -> int:
    """A setting of GEEP that must be a whole number.

    Raises:
        ConfigError: it is none, or outside ``low`` .. ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"method 'geep': {key} = {value!r} makes no sense here: give a whole number in {low}..{high}")
    return value


@dataclass
class FittedGeep(AssignedExits):
    """A trained multi-exit model, one exit table per speed, and the points that were tuned on dev."""

    tables: dict[float, ExitTable] = field(default_factory=dict)
    points: list[OperatingPoint] = field(default_factory=list)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        """Return, per speed, the student's answer and the shared one (``/shared``), tuned by ``fit``."""
        return self.points

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
        points = [{"name": point.name, "params": dict(point.params)} for point in self.points]
        facts = {"speeds": list(self.tables), "points": points}
        (folder / "geep.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


@register
class Geep:
    """One-step shared exit loss; exits predicted from tokens; batches sorted by predicted exit.

    Config: :data:`DEFAULTS`, the keys of :class:`~harness.toolkit.training.Recipe`, and ``head``. ``exits`` is E, 1 .. L-2;
    ``speeds`` are the entropy thresholds at which tables are built; ``holdout`` is the fraction of train kept out of
    training to build the tables from.
    """

    name = "geep"
    kind: Kind = "method"
    needs: tuple[str, ...] = ()
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> FittedGeep:
        """Train in one step, fill one table per speed from train, tune its quantile on dev.

        Raises:
            ConfigError: the backbone has fewer than 3 or more than 24 layers, or a setting makes no sense or is read by
                nobody. All of it before training starts.
        """
        own = own_settings(self.name, config, DEFAULTS)
        depth = backbone.shape.layers
        if not 3 <= depth <= MAX_LAYERS:
            raise ConfigError(
                f"geep needs 3 to {MAX_LAYERS} layers, {backbone.name} has {depth}: choose another backbone"
            )
        # The last layer has the teacher, and the one before it no student of its own.
        exits = depth - 2 if own["exits"] is None else whole("exits", own["exits"], 1, depth - 2)
        speeds = checked_speeds(self.name, own["speeds"])
        options = {
            "ngram": whole("ngram", own["ngram"], 1, MAX_NGRAM),
            "min_count": whole("min_count", own["min_count"], 1, COUNT_LIMIT - 1),
            "smoothing": whole("smoothing", own["smoothing"], 0, COUNT_LIMIT - 1),
        }
        learn, watch = split_off(task.train, own["holdout"], seed)
        torch.manual_seed(seed)
        model = MultiExitModel(backbone.encoder(), task.num_labels, range(exits), config.get("head", "fastbert"))

        def evaluate() -> float:
            # Every exit has to answer, so every exit counts.
            scores = dev_accuracies(model, task.dev)
            return sum(scores) / len(scores)

        report = train(
            model,
            lambda tokens, layout, labels: shared_exit_loss(model, tokens, layout, labels),
            learn,
            Recipe.of(config),
            seed=seed,
            name=f"geep {task.name}",
            evaluate=evaluate,
        )
        fitted = FittedGeep(model, report)
        observed = exit_logits(model, watch.tokens, TUNING)
        answers: tuple[Answer, ...] = ("student", "shared")
        views = {
            answer: DevView.of(
                exit_logits(model, task.dev.tokens, TUNING, answer=answer), task.dev.labels, model.answers, depth
            )
            for answer in answers
        }
        for speed in speeds:
            table = build_table(watch.tokens, observed, model.answers, speed, depth, **options)
            fitted.tables[speed] = table
            predicted = table.quantiles(task.dev.tokens, QUANTILES).cpu().numpy()
            budget = views["student"].sequential_layers(speed)
            for answer, view in views.items():
                quantile, layers, accuracy = tune_quantile(predicted, view, budget, extra=int(answer == "shared"))
                fitted.points.append(
                    OperatingPoint(
                        f"speed={speed:g}" + ("/shared" if answer == "shared" else ""),
                        {
                            "speed": speed,
                            "quantile": quantile,
                            "answer": answer,
                            "dev_mean_layers": layers,
                            "dev_accuracy": accuracy,
                        },
                    )
                )
        return fitted

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        speeds = checked_speeds(self.name, config.get("speeds", SPEEDS))
        return [f"speed={speed:g}{answer}" for speed in speeds for answer in ("", "/shared")]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FittedGeep:
        model, report = load_model(folder, backbone.device)
        try:
            facts = json.loads((folder / "geep.json").read_text(encoding="utf-8"))
            tables = {
                speed: ExitTable.load(folder / f"table-{speed:g}", num_layers=model.depth) for speed in facts["speeds"]
            }
            points = [OperatingPoint(point["name"], point["params"]) for point in facts["points"]]
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:  # the last: a table of another model
            raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
        return FittedGeep(model, report, tables, points)


def split_off(train_split: Split, holdout: float, seed: int) -> tuple[Split, Split]:
    """Return rows to train on and rows to observe exits on: all rows twice for 0, else disjoint.

    Raises:
        ConfigError: ``holdout`` is not in 0 .. 0.5, or leaves no row to train on.
    """
    if not isinstance(holdout, int | float) or not 0 <= holdout <= 0.5:
        raise ConfigError(f"method 'geep': holdout = {holdout!r} is no fraction in 0..0.5: 0 keeps nothing out")
    if not holdout:
        return train_split, train_split
    order = torch.randperm(len(train_split), generator=torch.Generator().manual_seed(seed))
    size = max(1, round(holdout * len(train_split)))
    if size == len(train_split):
        raise ConfigError(f"method 'geep': holdout = {holdout} leaves nothing of {size} rows to train on: set it to 0")

    def part(index: Tensor) -> Split:
        return Split(train_split.tokens.select(index), train_split.labels[index])

    return part(order[size:]), part(order[:size])
