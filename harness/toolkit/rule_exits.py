"""Exit rules on any weights: the list of rules, how each is tuned on dev, and the fitted method that runs one."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import Split
from harness.core.work import ModelCost
from harness.encoder.model import ExitGate, ExitPolicy, Gate, HaltingGate, parameters_of
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_evidence
from harness.execution.exit_rules import (
    Confidence,
    Entropy,
    ExitRule,
    Learned,
    Patience,
    PatienceConfidence,
    PatienceSimilarity,
    Policy,
    QExit,
    RawEntropy,
    Setting,
    Static,
    candidate_thresholds,
    replay,
    scores_of,
)
from harness.toolkit.budgets import Candidate, points_at_budgets
from harness.toolkit.fitted import RuleDriven, load_model, read_points, reading, write_points
from harness.toolkit.training import TrainingReport

TUNING = Execution(batch_size=64)
GATE = "gate.safetensors"
RuleName = Literal[
    "entropy",
    "raw-entropy",
    "confidence",
    "patience",
    "patience-confidence",
    "patience-similarity",
    "learned",
    "policy",
    "q-exit",
    "static",
]
RULES: dict[RuleName, type[ExitRule]] = {
    "entropy": Entropy,
    "raw-entropy": RawEntropy,
    "confidence": Confidence,
    "patience": Patience,
    "patience-confidence": PatienceConfidence,
    "patience-similarity": PatienceSimilarity,
    "learned": Learned,
    "policy": Policy,
    "q-exit": QExit,
    "static": Static,
}
# Rules that need a gate of this kind, trained with the weights.
GATES: dict[RuleName, type[Gate]] = {"learned": ExitGate, "policy": ExitPolicy, "q-exit": HaltingGate}
SETTINGS = ("threshold", "patience", "place")
THRESHOLDS = 200  # at most, tried per rule
APART = 1e-5  # scores nearer than this differ by rounding only
_AT_ONCE = 2_000_000  # decisions that a replay holds in memory
# Bounds of calibration: if dev is answered without a mistake, the likelihood grows without end as T falls.
COLDEST, HOTTEST = 0.05, 20.0
R = TypeVar("R", bound="RuleExits")


def make_rule(
    name: RuleName, settings: Mapping[str, Setting], temperatures: tuple[float, ...] = (), gate: Gate | None = None
) -> ExitRule:
    """Return the rule called ``name`` with its settings, some of :data:`SETTINGS`."""
    learnt: dict[str, Any] = {"temperatures": temperatures} if name == "confidence" else {}
    return RULES[name](**settings, **({"gate": gate} if name in GATES else learnt))


def new_gate(name: RuleName, model: MultiExitModel) -> Gate | None:
    """Return a new gate for a model, of the kind that a rule needs; ``None`` if it needs none."""
    if name not in GATES:
        return None
    return GATES[name].beside(model.encoder.shape.width, len(model.exits)).to(model.encoder.device)


def calibrate(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Return the temperature per exit that maximises the likelihood of dev (Guo et al. 2017, as RightTool uses it).

    The likelihood is concave in 1/T, so bisection finds the maximum.

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


def worth_trying(name: RuleName, scores: Tensor, classes: int) -> list[dict[str, Any]]:
    """Return the settings of a rule that are tried on dev.

    Args:
        scores: [A, N], as :func:`scores_of` returns them.
    """
    places = len(scores)
    if name == "static":
        return [{"place": place} for place in range(places)]
    patiences = range(1, places)
    if name == "patience":
        return [{"patience": patience} for patience in patiences]
    beyond = Policy.most + 1
    ends = {"raw-entropy": (0.0, math.log(classes)), "policy": (-beyond, beyond)}.get(name, (0.0, 1.0))
    thresholds = candidate_thresholds(scores[:-1].numpy(), ends, most=THRESHOLDS, apart=APART).tolist()
    if name in ("patience-confidence", "patience-similarity"):
        pairs = itertools.product(thresholds, patiences)
        return [{"threshold": threshold, "patience": patience} for threshold, patience in pairs]
    return [{"threshold": threshold} for threshold in thresholds]


@dataclass(frozen=True)
class Tried(Candidate):
    """A candidate with all settings of its rule."""

    settings: Mapping[str, Any] = field(default_factory=dict)


def outcomes(
    name: RuleName, scores: Tensor, correct: Tensor, answers: Sequence[int], settings: Sequence[Mapping[str, Any]]
) -> list[Tried]:
    """Replay a rule on dev with each of these settings.

    Args:
        scores: [A, N], as :func:`scores_of` returns them.
        correct: bool [A, N].
        answers: layer indices of the places.
    """
    tried: list[Tried] = []
    size = max(1, _AT_ONCE // max(1, scores.shape[1]))
    for start in range(0, len(settings), size):
        part = settings[start : start + size]
        together = {key: torch.tensor([one[key] for one in part])[:, None] for key in part[0]}
        tried += replayed(make_rule(name, together), scores, correct, answers, part)
    return tried


def replayed(
    rule: ExitRule, scores: Tensor, correct: Tensor, answers: Sequence[int], settings: Sequence[Mapping[str, Any]]
) -> list[Tried]:
    """Replay a rule with K settings as tensors [K, 1]; ``settings`` are these K, the first value of each being a number."""
    places = replay(rule, scores)  # [K, N]
    mean_layers = (torch.tensor(answers) + 1)[places].double().mean(1).tolist()
    accuracies = correct[places, torch.arange(scores.shape[1])].double().mean(1).tolist()
    return [
        Tried(float(next(iter(one.values()))), depth, accuracy, dict(one))
        for one, depth, accuracy in zip(settings, mean_layers, accuracies, strict=True)
    ]


@dataclass
class RuleExits(RuleDriven):
    """A multi-exit model under one exit rule, tuned on dev at budgets of mean layers.

    Attributes:
        rule: its name, a key of :data:`RULES`.
        temperatures: per answering layer, for rule ``confidence``.
        gate: trained with the model, of the kind that its rule needs (:data:`GATES`); ``None`` if the method has none.
    """

    rule: RuleName = "entropy"
    temperatures: tuple[float, ...] = ()
    gate: Gate | None = None

    @property
    def cost(self) -> ModelCost:
        """The model's cost, with the gate if the rule uses it."""
        cost = self.model.cost()
        if self.rule not in GATES or self.gate is None:
            return cost
        blocks = {**cost.blocks, "gate": self.gate.cost()}
        return replace(cost, blocks=blocks, params=cost.params + parameters_of(self.gate))

    def rule_at(self, at: OperatingPoint) -> ExitRule:
        settings = {key: at.params[key] for key in SETTINGS if key in at.params}
        return make_rule(self.rule, settings, self.temperatures, self.gate)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.save_rule(folder)
        if self.gate is not None:
            save_file({key: value.contiguous() for key, value in self.gate.state_dict().items()}, folder / GATE)

    def save_rule(self, folder: Path) -> None:
        """Write what was chosen on dev, without the model."""
        write_points(self.points, folder / "points.json")
        facts = {"rule": self.rule, "temperatures": self.temperatures}
        (folder / "rule.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            gate = new_gate(read_json(folder / "rule.json")["rule"], model)
            if gate is not None:
                gate.load_state_dict(load_file(folder / GATE))
                gate = gate.eval()
        return cls.around(folder, model, report, gate)

    @classmethod
    def around(cls, folder: Path, model: MultiExitModel, report: TrainingReport | None, gate: Gate | None) -> Self:
        """Read what :meth:`save_rule` wrote, for a given model.

        Raises:
            ResultError: a file is missing, damaged, or of another model.
        """
        with reading(folder):
            facts, points = read_json(folder / "rule.json"), read_points(folder / "points.json")
            fitted = cls(model, report, points, facts["rule"], tuple(facts["temperatures"]), gate)
            for point in points:
                fitted.rule_at(point)
            if not _has_gate(fitted.rule, gate):
                raise ValueError("these weights lack the gate of the rule")
            if fitted.temperatures and len(fitted.temperatures) != len(model.answers):
                raise ValueError("rule.json is of another model")
        return fitted


def _has_gate(rule: RuleName, gate: Gate | None) -> bool:
    return rule not in GATES or isinstance(gate, GATES[rule])


def under_rule(
    kind: type[R],
    model: MultiExitModel,
    report: TrainingReport | None,
    *,
    method: str,
    rule: RuleName,
    budgets: Sequence[float],
    dev: Split,
    gate: Gate | None = None,
) -> R:
    """Put a model under a rule: calibrate it if the rule needs that, and choose the rule's settings at budgets, on dev.

    Args:
        budgets: in rising order, as :class:`~harness.toolkit.method_settings.BudgetSettings` has them.

    Raises:
        ConfigError: the model has no early exit, or lacks what the rule needs.
    """
    if not model.exits:
        raise ConfigError(
            f"method '{method}': rule '{rule}' needs weights with early exits, and these have none: use an early-exit method"
        )
    if not _has_gate(rule, gate):
        raise ConfigError(
            f"method '{method}': rule '{rule}' needs a gate that was trained for it with the weights, and these have none: "
            "use the weights of the method whose rule it is, or another rule"
        )
    logits, doubts = exit_evidence(model, dev.tokens, TUNING, gate=gate if rule in GATES else None)
    temperatures = calibrate(logits, dev.labels) if rule == "confidence" else ()
    reader = make_rule(
        rule, {one.name: 0.0 for one in fields(cast(Any, RULES[rule])) if one.name in SETTINGS}, temperatures, gate
    )
    scores = scores_of(reader, logits, doubts)
    correct = logits.argmax(-1) == dev.labels
    tried = outcomes(rule, scores, correct, model.answers, worth_trying(rule, scores, model.labels))
    points = points_at_budgets(tried, budgets, model.depth, len(dev), lambda one: {"rule": rule, **one.settings})
    return kind(model, report, points, rule, temperatures, gate)
