"""Verified exits (ours): prediction decides when to look, the head there decides whether to stop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.rules import Expected
from geep.method import TUNING, FittedGeep
from geep.predictor import DevView
from geep.rule_choices import prices
from harness.contracts import OperatingPoint, Predictions, Role
from harness.core.clock import Phases
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.transfer import upload
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import Entropy, candidate_thresholds
from harness.execution.verified import run_verified
from harness.toolkit.base_method import BaseMethod, Teachers
from harness.toolkit.budgets import budget_name, points_at_budgets
from harness.toolkit.distillation import teacher_of_kind
from harness.toolkit.fitted import ChosenPoints, read_points, reading, write_points
from harness.toolkit.method_settings import MethodSettings, speed_name
from harness.toolkit.rule_exits import Tried

# Heads that a sample may use before it is answered unsure. EVERY: one at each exit from the first look on.
EVERY = 0
MODES: dict[str, tuple[int, ...]] = {"once": (1,), "steps": (3, EVERY)}
# Allowed layers on dev at a speed, relative to the sequential exit: a few per cent more, because looks come in whole layers.
SLACK = 1.03
GRID = tuple(range(25, 1000, 25))  # first quantile, per mille
THRESHOLDS = 256  # tried per way of looking, at most


def look_quantiles(first: int, looks: int) -> list[int]:
    """Return quantiles of successive looks, per mille; each halves the rest up to 1000: 600 -> 600, 800, 900."""
    return [1000 - (1000 - first) // 2**i for i in range(looks)]


def look_layers(table: ExitTable, tokens: TokenSet, answers: Sequence[int], quantile: int, looks: int) -> Tensor:
    """Return layer indices at which each sample runs a head: int16 [N, S], on the device of ``tokens``.

    Args:
        answers: layer indices that have a head, rising.
        quantile: of the first look, per mille; for a table of agreement (GEEP's rule ``expected``) the price of a layer, which
            each further look halves.
        looks: S; or :data:`EVERY`, the first look and every exit after it.
    """
    if table.columns.agreement:
        first = table.assign(tokens, Expected(tuple(quantile // 2**i for i in range(max(looks, 1)))))
    else:
        first = table.quantiles(tokens, look_quantiles(quantile, max(looks, 1)))  # [N, S] or, for every exit, [N, 1]
    if looks != EVERY:
        return first
    exits = upload(np.array(answers, dtype=np.int16), tokens.device)
    # Columns before the first look repeat it, and a look that is not deeper than the one before is skipped.
    return torch.maximum(exits.expand(len(tokens), -1), first)


@dataclass(frozen=True)
class LookChoice:
    """When to look, and the results on dev: shares of samples, mean layers and mean heads.

    Attributes:
        looks: see :func:`look_layers`.
        quantile: of the first look, or its price, see :func:`look_layers`.
        end: layer index at which unsure samples are answered.
        threshold: normalised entropy up to which a sample leaves.
        dev_agreement: share of samples with the answer of full depth.
    """

    looks: int
    quantile: int
    end: int
    threshold: float
    dev_agreement: float
    dev_accuracy: float
    dev_mean_layers: float
    dev_mean_heads: float


def simulate(
    looks: np.ndarray, view: DevView, thresholds: np.ndarray, end: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Simulate looking at ``looks`` [N, S] (layer indices, not falling) per threshold; unsure samples are answered at ``end``.

    Returns:
        agreement with full depth, accuracy, mean layers, mean heads; each [T].
    """
    stop = int(view.position(np.array(end)))
    place = view.position(looks)  # [N, S]
    place[:, 1:] = np.minimum(place[:, 1:], stop)
    samples = np.arange(len(looks))
    done = np.zeros((len(thresholds), len(looks)), dtype=bool)  # [T, N]
    where = np.full(done.shape, stop)
    heads = np.zeros(done.shape, dtype=np.int16)
    deepest = np.full(len(looks), -1)
    for at in place.T:
        asked = ~done & (at > deepest)
        heads += asked
        leaving = asked & ((view.entropy[at, samples] <= thresholds[:, None]) | (at >= stop))
        where = np.where(leaving, at, where)
        done |= leaving
        deepest = np.maximum(deepest, at)
    heads += ~done
    layers = (view.answers + 1)[where].mean(1)
    return view.agrees[where, samples].mean(1), view.correct[where, samples].mean(1), layers, heads.mean(1)


def choices(table: ExitTable, tokens: TokenSet, view: DevView, speed: float, mode: str) -> list[LookChoice]:
    """Return all looks, thresholds (``speed`` among them) and ends that a mode may choose, with their results on dev.

    ``once`` may also stop unsure samples before the last layer: where the sequential exit leaves after little more than one
    layer, full depth is too expensive for even few samples. ``steps`` continues to the last layer, with looks on the way.
    """
    thresholds = candidate_thresholds(view.entropy[:-1], (speed, 1.0), most=THRESHOLDS)
    last = int(view.answers[-1])
    outcomes, seen = [], set()
    firsts = prices(table, tokens, view.answers.tolist(), len(GRID)) if table.columns.agreement else GRID
    for looks, first in itertools.product(MODES[mode], firsts):
        at = look_layers(table, tokens, view.answers.tolist(), first, looks).cpu().numpy()
        if at.tobytes() in seen:  # many quantiles give the same looks
            continue
        seen.add(at.tobytes())
        for end in view.answers[1:].tolist() if looks == 1 else [last]:
            rows = zip(thresholds, *simulate(at, view, thresholds, end), strict=True)
            outcomes += [LookChoice(looks, first, end, *(float(value) for value in row)) for row in rows]
    return outcomes


def best_within(layers: float, outcomes: Sequence[LookChoice]) -> LookChoice:
    """Return the choice with the largest agreement with full depth within mean layers on dev, then the fewest layers.

    Agreement needs no labels and varies less between dev samples than accuracy, so the choice overfits dev less. If no choice
    is within ``layers``, the cheapest is returned.
    """
    affordable = [o for o in outcomes if o.dev_mean_layers <= layers + 1e-9]
    if not affordable:
        return min(outcomes, key=lambda o: (o.dev_mean_layers, o.dev_mean_heads, -o.dev_agreement))
    return max(affordable, key=lambda o: (o.dev_agreement, -o.dev_mean_layers, -o.dev_mean_heads))


@dataclass
class FittedVerified(ChosenPoints):
    """GEEP's model and tables, used to decide when to look. Saves only the points: the rest is saved by GEEP."""

    executor = "verified"

    tables: dict[float, ExitTable] = field(default_factory=dict)

    def looks(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return layer indices at which each sample runs a head, int16 [N, S]."""
        chosen = at.params
        return look_layers(
            self.tables[chosen["speed"]], tokens, self.model.answers, chosen["quantile"], chosen["looks"]
        )

    def key_hits(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[int, int]:
        """Return the hits in GEEP's tables."""
        self.looks(tokens, at=at)
        return self.tables[at.params["speed"]].hits()

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        phases = Phases(tokens.device)
        with phases("predict"):
            looks = self.looks(tokens, at=at)
        rule = Entropy(at.params["threshold"])
        return run_verified(self.model, tokens, looks, at.execution, rule, end=at.params["end"], phases=phases)

    def save(self, folder: Path) -> None:
        write_points(self.points, folder / "verified.json")


def _geep(teachers: Teachers) -> FittedGeep:
    needs = "geep-verified needs the method 'geep' of this project"
    return teacher_of_kind(FittedGeep, teachers, "geep", needs, "use it as the teacher")


class GeepVerifiedSettings(MethodSettings):
    """Settings of ``geep-verified``."""

    modes: Annotated[tuple[Literal["once", "steps"], ...], Field(strict=False, min_length=1)] = Field(
        ("once", "steps"),
        description="once: one look, then a fixed end; steps: a look at every next (predicted) exit. Each at most once",
    )

    @field_validator("modes")
    @classmethod
    def _once(cls, modes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(modes)) < len(modes):
            raise ValueError("give each mode once")
        return modes

    @property
    def point_names(self) -> list[str]:
        at_speeds = [f"{speed_name(speed)}/{mode}" for speed in self.speeds for mode in self.modes]
        return [*at_speeds, *map(budget_name, self.budgets)]


class GeepVerified(BaseMethod[GeepVerifiedSettings]):
    """Run to the predicted exit and apply one head; confident samples leave, the others continue. Trains nothing."""

    name = "geep-verified"
    role: Role = "verifies-exits"
    needs: tuple[str, ...] = ("geep",)
    version = 6
    settings = GeepVerifiedSettings

    def learn(
        self, own: GeepVerifiedSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> FittedVerified:
        """Tune quantile and threshold on dev: for every speed and mode, then for every budget over all speeds and modes."""
        geep = _geep(teachers)
        model = geep.model
        logits = exit_logits(model, task.dev.tokens, TUNING)
        view = DevView.of(logits, task.dev.labels, model.answers, model.depth)
        fitted = FittedVerified(model, None, tables=geep.tables)
        pool: list[Tried] = []
        # GEEP may have tables for budgets alone.
        at_speeds = {point.params["speed"] for point in geep.points if "budget" not in point.params}
        for speed, table in geep.tables.items():
            for mode in own.modes:
                candidates = choices(table, task.dev.tokens, view, speed, mode)
                params = {"speed": speed, "mode": mode}
                if speed in at_speeds:
                    chosen = best_within(SLACK * view.sequential_layers(speed), candidates)
                    fitted.points.append(OperatingPoint(f"{speed_name(speed)}/{mode}", {**params, **asdict(chosen)}))
                for budget in own.budgets:
                    one = best_within(budget * view.depth, candidates)
                    figures = (one.threshold, one.dev_mean_layers, one.dev_accuracy)
                    pool.append(Tried(*figures, {**params, **asdict(one)}))
        fitted.points += points_at_budgets(pool, own.budgets, view.depth, len(task.dev), lambda one: one.settings)
        return fitted

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> FittedVerified:
        geep = _geep(teachers)
        with reading(folder):
            points = read_points(folder / "verified.json")
        return FittedVerified(geep.model, None, points, geep.tables)
