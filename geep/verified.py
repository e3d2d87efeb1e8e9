"""Verified exits (ours): prediction says when to look, the head there says whether to stop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from geep.exit_table import ExitTable
from geep.method import TUNING, FittedGeep
from geep.predictor import DevView
from harness.contracts import Fitted, Kind, OperatingPoint, Predictions, Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.executors import exit_logits
from harness.encoder.exits import entropy_rule
from harness.encoder.verified import run_verified
from harness.errors import ConfigError, ResultError
from harness.fitted import SPEEDS, FittedModel, checked_speeds
from harness.measure.clock import Phases
from harness.registry import register
from harness.training import own_settings

MODES = {"once": 1, "steps": 3}  # looks before the end
SLACK = 1.03  # layers on dev, against the sequential exit
GRID = tuple(range(25, 1000, 25))  # first quantile, per mille


def look_quantiles(first: int, looks: int) -> list[int]:
    """Quantiles of successive looks, per mille: each halves what is left to certainty: 600 -> 600, 800, 900."""
    return [1000 - (1000 - first) // 2**i for i in range(looks)]


@dataclass(frozen=True)
class Outcome:
    """What a way of looking would do on dev, as fractions and layers."""

    quantile: int
    threshold: float
    accuracy: float
    layers: float
    heads: float
    agreement: float


def simulate(looks: np.ndarray, view: DevView, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcome per threshold of looking at ``looks`` [N, S] (layer indices, not falling).

    Returns:
        accuracy, mean layers, mean heads; each [T].
    """
    last = len(view.answers) - 1
    place = view.position(looks)  # [N, S]
    samples = np.arange(len(looks))
    done = np.zeros((len(thresholds), len(looks)), dtype=bool)  # [T, N]
    right = np.tile(view.correct[last].astype(float), (len(thresholds), 1))
    layers = np.full(done.shape, float(view.depth))
    heads = np.zeros(done.shape)
    for column in range(looks.shape[1]):
        at = place[:, column]
        fresh = (at < last) & ((column == 0) | (at > place[:, max(0, column - 1)]))
        asked = ~done & fresh
        heads += asked
        leaving = asked & (view.entropy[at, samples] <= thresholds[:, None])
        right = np.where(leaving, view.correct[at, samples], right)
        layers = np.where(leaving, view.answers[at] + 1, layers)
        done |= leaving
    heads += ~done
    return right.mean(1), layers.mean(1), heads.mean(1)


def cuts(entropy: np.ndarray, speed: float) -> np.ndarray:
    """Thresholds worth trying: ``speed``, 1, and at most 256 half way between entropies that occur; float32 [T], rising.

    Half way, so that rounding, which differs from batch to batch, cannot tip a sample of dev to the other side.
    """
    values = np.unique(entropy)
    between = (values[1:] + values[:-1]) / 2
    if len(between) > 256:
        between = between[np.linspace(0, len(between) - 1, 256).round().astype(int)]
    return np.unique(np.append(between, [speed, 1.0]).astype(np.float32))


def tune(table: ExitTable, tokens: TokenSet, view: DevView, speed: float, looks: int) -> Outcome:
    """First quantile and threshold on dev: the best within the layers that sequential exit takes at ``speed``.

    Best is the largest sum of accuracy and agreement with full depth, then the cheapest. Dev is small and agreement
    varies less than accuracy: tuned on one half of dev and tried on the other, the sum loses less than accuracy alone.
    A few per cent more layers are allowed (:data:`SLACK`), because looks come in whole layers. Where nothing is as cheap
    as the sequential exit, the cheapest is taken.
    """
    budget = SLACK * view.sequential_layers(speed)
    thresholds = cuts(view.entropy[:-1], speed)
    against_full = replace(view, correct=view.agrees)
    outcomes, seen = [], set()
    for first in GRID:
        at = table.quantiles(tokens, look_quantiles(first, looks)).cpu().numpy()
        if at.tobytes() in seen:  # many quantiles look at the same layers
            continue
        seen.add(at.tobytes())
        accuracy, layers, heads = simulate(at, view, thresholds)
        agreement, _, _ = simulate(at, against_full, thresholds)
        rows = zip(thresholds, accuracy, layers, heads, agreement, strict=True)
        outcomes += [Outcome(first, *(float(value) for value in row)) for row in rows]
    affordable = [o for o in outcomes if o.layers <= budget + 1e-9]
    if not affordable:
        return min(outcomes, key=lambda o: (o.layers, -o.accuracy))
    return max(affordable, key=lambda o: (o.accuracy + o.agreement, -o.layers))


@dataclass
class FittedVerified(FittedModel):
    """GEEP's model and tables, looked at another way."""

    executor = "verified"

    tables: dict[float, ExitTable] = field(default_factory=dict)
    points: list[OperatingPoint] = field(default_factory=list)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        """Per speed, ``once`` and ``steps``; tuned when the method was fitted."""
        return self.points

    def looks(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Layer indices at which each sample asks a head, int16 [N, S]."""
        quantiles = look_quantiles(at.params["quantile"], at.params["looks"])
        return self.tables[at.params["speed"]].quantiles(tokens, quantiles)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        phases = Phases(tokens.device)
        with phases("predict"):
            looks = self.looks(tokens, at=at)
        return run_verified(
            self.model, tokens, looks, at.execution, entropy_rule(at.params["threshold"]), phases=phases
        )

    def save(self, folder: Path) -> None:
        """Only the points: model and tables are GEEP's and lie there."""
        points = [{"name": point.name, "params": dict(point.params)} for point in self.points]
        (folder / "verified.json").write_text(json.dumps(points, indent=1), encoding="utf-8")


def _geep(teachers: Mapping[str, Fitted]) -> FittedGeep:
    geep = teachers["geep"]
    if not isinstance(geep, FittedGeep):
        raise ConfigError(f"geep-verified needs the method 'geep' of this project, got {type(geep).__name__}")
    return geep


@register
class GeepVerified:
    """Run to the predicted exit, ask one head; the sure leave, the others go on. Learns nothing beyond GEEP.

    Config: ``modes``, a list out of ``once`` and ``steps``.
    """

    name = "geep-verified"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("geep",)
    version = 4

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> FittedVerified:
        """Tune quantile and threshold on dev for every speed and mode.

        Raises:
            ConfigError: an unknown mode, or a setting that nobody reads.
        """
        modes = own_settings(self.name, config, {"modes": list(MODES)})["modes"]
        if not modes or any(mode not in list(MODES) for mode in modes) or len(set(modes)) < len(modes):
            known = ", ".join(MODES)
            raise ConfigError(
                f"method '{self.name}': modes = {modes} makes no sense: name one or more out of {known}, once"
            )
        geep = _geep(teachers)
        model = geep.model
        logits = exit_logits(model, task.dev.tokens, TUNING)
        view = DevView.of(logits, task.dev.labels, model.answers, model.depth)
        fitted = FittedVerified(model, None, geep.tables)
        for speed, table in geep.tables.items():
            for mode in modes:
                chosen = tune(table, task.dev.tokens, view, speed, MODES[mode])
                fitted.points.append(
                    OperatingPoint(
                        f"speed={speed:g}/{mode}",
                        {
                            "speed": speed,
                            "mode": mode,
                            "looks": MODES[mode],
                            "quantile": chosen.quantile,
                            "threshold": chosen.threshold,
                            "dev_accuracy": chosen.accuracy,
                            "dev_mean_layers": chosen.layers,
                            "dev_mean_heads": chosen.heads,
                        },
                    )
                )
        return fitted

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        modes = config.get("modes", MODES)
        speeds = checked_speeds(self.name, config.get("speeds", SPEEDS))
        return [f"speed={speed:g}/{mode}" for speed in speeds for mode in modes]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FittedVerified:
        geep = _geep(teachers)
        try:
            facts = json.loads((folder / "verified.json").read_text(encoding="utf-8"))
            points = [OperatingPoint(point["name"], point["params"]) for point in facts]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
        return FittedVerified(geep.model, None, geep.tables, points)
