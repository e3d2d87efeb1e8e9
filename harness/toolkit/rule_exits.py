"""Any exit rule on any weights: which rules there are, how each is set on dev, and the fitted method that runs it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, TokenSet
from harness.core.work import ModelCost
from harness.encoder.model import ExitGate, parameters_of
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_evidence
from harness.execution.exit_rules import (
    Confidence,
    Entropy,
    ExitRule,
    Learned,
    Patience,
    PatienceConfidence,
    RawEntropy,
    Setting,
    Static,
    candidate_thresholds,
    replay,
    scores_of,
)
from harness.execution.sequential import run_sequential
from harness.toolkit.budgets import Candidate, at_budgets, budget_name
from harness.toolkit.fitted import FittedModel, load_model
from harness.toolkit.training import TrainingReport

TUNING = Execution(batch_size=64)
GATE = "gate.safetensors"
RULES: dict[str, type[ExitRule]] = {
    "entropy": Entropy,
    "raw-entropy": RawEntropy,
    "confidence": Confidence,
    "patience": Patience,
    "patience-confidence": PatienceConfidence,
    "learned": Learned,
    "static": Static,
}
SETTINGS = ("threshold", "patience", "place")
THRESHOLDS = 200  # tried per rule, at most
APART = 1e-5  # scores nearer than this are told apart by rounding only
_AT_ONCE = 2_000_000  # decisions that a replay holds in memory
# Calibration stays within these temperatures: where dev is separated without a mistake, any smaller one is better yet.
COLDEST, HOTTEST = 0.05, 20.0


def checked_rule(method: str, rule: Any) -> str:
    """The name of a rule.

    Raises:
        ConfigError: there is no such rule.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise ConfigError(f"method '{method}': rule = {rule!r} is unknown: choose one of {', '.join(RULES)}")
    return rule


def make_rule(
    name: str, settings: Mapping[str, Setting], temperatures: tuple[float, ...] = (), gate: ExitGate | None = None
) -> ExitRule:
    """The rule called ``name`` with its settings, out of :data:`SETTINGS`."""
    learnt: dict[str, Any] = {}
    if name == "confidence":
        learnt["temperatures"] = temperatures
    if name == "learned":
        learnt["gate"] = gate
    return RULES[name](**settings, **learnt)


def calibrate(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """A temperature per exit that makes its answers to dev likeliest (Guo et al. 2017, as RightTool uses it).

    The likelihood is concave in 1/T, so halving an interval finds the best.

    Args:
        logits: [A, N, C].
        labels: int64 [N].
    """
    found = []
    for answers in logits.double():
        right = answers.gather(1, labels[:, None]).squeeze(1)
        low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
        for _ in range(50):
            middle = (low + high) / 2
            expected = ((answers * math.exp(middle)).softmax(-1) * answers).sum(-1)
            low, high = (middle, high) if float((expected - right).mean()) < 0 else (low, middle)
        found.append(math.exp(-(low + high) / 2))
    return tuple(found)


def worth_trying(name: str, scores: Tensor, classes: int) -> list[dict[str, Any]]:
    """Settings of a rule to choose from on dev.

    Args:
        scores: [A, N], what the rule reads there.
    """
    places = len(scores)
    if name == "static":
        return [{"place": place} for place in range(places)]
    patiences = range(1, places)
    if name == "patience":
        return [{"patience": patience} for patience in patiences]
    ends = (0.0, math.log(classes)) if name == "raw-entropy" else (0.0, 1.0)
    thresholds = candidate_thresholds(scores[:-1].numpy(), ends, most=THRESHOLDS, apart=APART).tolist()
    if name == "patience-confidence":
        pairs = itertools.product(thresholds, patiences)
        return [{"threshold": threshold, "patience": patience} for threshold, patience in pairs]
    return [{"threshold": threshold} for threshold in thresholds]


@dataclass(frozen=True)
class Tried(Candidate):
    """A candidate with all settings of its rule."""

    settings: Mapping[str, Any] = field(default_factory=dict)


def outcomes(
    name: str, scores: Tensor, correct: Tensor, answers: Sequence[int], settings: Sequence[Mapping[str, Any]]
) -> list[Tried]:
    """What a rule would do on dev with each of these settings.

    Args:
        scores: [A, N], what the rule reads.
        correct: bool [A, N].
        answers: layer indices of the places.
    """
    layers = torch.tensor(answers) + 1
    samples = torch.arange(scores.shape[1])
    tried: list[Tried] = []
    size = max(1, _AT_ONCE // max(1, len(samples)))
    for start in range(0, len(settings), size):
        part = settings[start : start + size]
        together = {key: torch.tensor([one[key] for one in part])[:, None] for key in part[0]}
        places = replay(make_rule(name, together), scores)  # [K, N]
        mean_layers = layers[places].double().mean(1).tolist()
        accuracies = correct[places, samples].double().mean(1).tolist()
        for one, depth, accuracy in zip(part, mean_layers, accuracies, strict=True):
            tried.append(Tried(float(next(iter(one.values()))), depth, accuracy, dict(one)))
    return tried


@dataclass
class RuleExits(FittedModel):
    """A multi-exit model that runs under one exit rule, set on dev at budgets of mean layers.

    Attributes:
        rule: its name, out of :data:`RULES`.
        points: one per budget, named ``budget=0.25``; set when the method was fitted.
        temperatures: per answering layer, for rule ``confidence``.
        gate: learnt with the model, if it was.
    """

    executor = "shrink"

    rule: str = "entropy"
    points: list[OperatingPoint] = field(default_factory=list)
    temperatures: tuple[float, ...] = ()
    gate: ExitGate | None = None

    @property
    def cost(self) -> ModelCost:
        """The model's, and the gate's where the rule asks it."""
        cost = self.model.cost()
        if self.rule != "learned" or self.gate is None:
            return cost
        blocks = {**cost.blocks, "gate": self.gate.cost()}
        return replace(cost, blocks=blocks, params=cost.params + parameters_of(self.gate))

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return self.points

    def rule_at(self, at: OperatingPoint) -> ExitRule:
        """The rule with the settings of a point."""
        settings = {key: at.params[key] for key in SETTINGS if key in at.params}
        return make_rule(self.rule, settings, self.temperatures, self.gate)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_sequential(self.model, tokens, at.execution, self.rule_at(at))

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.save_rule(folder)
        if self.gate is not None:
            save_file({key: value.contiguous() for key, value in self.gate.state_dict().items()}, folder / GATE)

    def save_rule(self, folder: Path) -> None:
        """What was chosen on dev, without the model."""
        points = [{"name": point.name, "params": dict(point.params)} for point in self.points]
        facts = {"rule": self.rule, "temperatures": self.temperatures, "points": points}
        (folder / "rule.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> RuleExits:
        """What :meth:`save` wrote.

        Raises:
            ResultError: a file is missing or damaged.
        """
        model, report = load_model(folder, device)
        gate = None
        if (folder / GATE).exists():
            gate = ExitGate(model.encoder.shape.width)
            try:
                gate.load_state_dict(load_file(folder / GATE))
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
            gate = gate.to(device).eval()
        return cls.around(folder, model, report, gate)

    @classmethod
    def around(
        cls, folder: Path, model: MultiExitModel, report: TrainingReport | None, gate: ExitGate | None
    ) -> RuleExits:
        """What :meth:`save_rule` wrote, for a model that is there already.

        Raises:
            ResultError: the file is missing, damaged, or of another model.
        """
        try:
            facts = json.loads((folder / "rule.json").read_text(encoding="utf-8"))
            points = [OperatingPoint(point["name"], point["params"]) for point in facts["points"]]
            fitted = cls(model, report, facts["rule"], points, tuple(facts["temperatures"]), gate)
            for point in points:
                fitted.rule_at(point)
            if fitted.rule == "learned" and gate is None:
                raise ValueError(f"{GATE} is missing")
            if fitted.temperatures and len(fitted.temperatures) != len(model.answers):
                raise ValueError("rule.json is of another model")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
        return fitted


def under_rule(
    kind: type[RuleExits],
    model: MultiExitModel,
    report: TrainingReport | None,
    *,
    method: str,
    rule: str,
    budgets: Sequence[float],
    dev: Split,
    gate: ExitGate | None = None,
) -> RuleExits:
    """Put a model under a rule: calibrate where the rule wants it, and choose its settings at budgets; dev only.

    Args:
        budgets: as from :func:`~harness.toolkit.budgets.checked_budgets`.

    Raises:
        ConfigError: the model has no early exit, or lacks what the rule needs.
    """
    if not model.exits:
        raise ConfigError(f"method '{method}': rule '{rule}' needs weights with early exits, and these have none")
    if rule == "learned" and gate is None:
        raise ConfigError(
            f"method '{method}': rule 'learned' needs a gate that was trained with the weights, and these have none: "
            "take those of 'berxit', or another rule"
        )
    logits, doubts = exit_evidence(model, dev.tokens, TUNING, gate=gate if rule == "learned" else None)
    temperatures = calibrate(logits, dev.labels) if rule == "confidence" else ()
    reader = make_rule(
        rule, {one.name: 0.0 for one in fields(cast(Any, RULES[rule])) if one.name in SETTINGS}, temperatures, gate
    )
    scores = scores_of(reader, logits, doubts)
    correct = logits.argmax(-1) == dev.labels
    tried = outcomes(rule, scores, correct, model.answers, worth_trying(rule, scores, model.labels))
    points = []
    for budget, chosen in zip(budgets, at_budgets(tried, budgets, model.depth), strict=True):
        assert isinstance(chosen, Tried)
        params = {"budget": budget, "rule": rule, **chosen.settings}
        params |= {"dev_mean_layers": chosen.layers, "dev_accuracy": chosen.accuracy}
        points.append(OperatingPoint(budget_name(budget), params))
    return kind(model, report, rule, points, temperatures, gate)
