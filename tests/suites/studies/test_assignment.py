"""The study of assignment rules: figures against controls, pooled differences, and the choice of dev."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from suites.studies import assignment
from suites.studies.assignment import AssignmentRules, Heads, against_controls


def test_rules_are_compared_on_the_same_weights(
    mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rule has all points; nothing is trained twice; the same command again uses what is stored."""
    out = tmp_path / "a.json"
    options = [*mini_options, "--methods", "geep", "--seeds", "0", "--set", "training.epochs=1", "--out", str(out)]
    assert assignment.main(options) == 0
    data = json.loads(out.read_text(encoding="utf-8"))
    points = list(dict.fromkeys(row["point"] for row in data["rows"]))
    assert "budget=0.5" in points and not any("shared" in point for point in points)
    assert [(row["rule"], row["point"]) for row in data["rows"]] == [
        (rule, point) for rule in ("quantile", "cuts", "expected") for point in points
    ]
    for row in data["rows"]:
        assert sum(row["histogram"]) == 10
        assert row["layers"] == pytest.approx(np.dot(row["histogram"], np.arange(1, len(row["histogram"]) + 1)) / 10)
    assert data["preferred"] == {"geep": max(data["dev"], key=lambda one: one["mean"])["rule"]}
    assert all(one["accuracy"]["detectable"] >= 0 for one in data["pooled"])
    text = capsys.readouterr().out
    assert "80 % power for" in text and 'For geep, dev prefers rule = "' in text
    monkeypatch.setattr(AssignmentRules, "measure", None)
    assert assignment.main(options) == 0


def test_a_variant_chooses_with_the_seed_of_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed tells which rows its training held out: with another one, rows that training has seen fill its tables."""
    seeds: list[int] = []

    def choose(*_: Any, seed: int, **__: Any) -> Any:
        seeds.append(seed)
        return SimpleNamespace(points=[])

    session = SimpleNamespace(
        weights=lambda _: SimpleNamespace(model=None),
        keys=SimpleNamespace(seed_of=lambda _: 103),
        prepared=SimpleNamespace(test=None, task=SimpleNamespace(dev=None)),
    )
    part = SimpleNamespace(dev=None)
    for name, value in {
        "Session": lambda *_: session,
        "LearnsInStages": object,
        "methods_with_rules": lambda _: ["geep-second"],
        "halves": lambda _: [(part, None), (part, None)],
        "Heads": SimpleNamespace(of=lambda *_: None),
    }.items():
        monkeypatch.setattr(assignment, name, value)
    profile = SimpleNamespace(method_of=lambda _: SimpleNamespace(choose=choose), config=lambda _: {})
    study: Any = SimpleNamespace(
        settings=SimpleNamespace(profile=profile),
        args=SimpleNamespace(rules=["quantile"]),
        describe=lambda _: None,
        facts=lambda *_: {},
    )
    assert AssignmentRules.measure(study, "a", 3) == []
    assert seeds == [103] * 3


@pytest.mark.parametrize(("options", "word"), [
    (["--methods", "fastbert"], "none of fastbert has assignment rules"),
    (["--methods", "geep", "--rules", "sum"], "no rule 'sum'"),
    (["--methods", "geep", "--point", "budget=0.9"], "no point 'budget=0.9'"),
])  # fmt: skip
def test_wrong_options_are_refused(
    options: list[str], word: str, mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one-line message names the option and the choices; exit code 2."""
    assert assignment.main([*mini_options, *options, "--out", str(tmp_path / "a.json")]) == 2
    assert word in capsys.readouterr().err


def test_exits_that_know_the_samples_beat_both_controls() -> None:
    """Exits that are right whenever a head is beat chance and the hull; constant depth equals both."""
    rng = np.random.default_rng(0)
    right = rng.random((200, 4)) < [0.5, 0.6, 0.65, 0.7]
    right[:, 2] = False  # no head there
    heads = Heads(right, right | (np.arange(4) == 3), (1, 2, 4))
    hull = heads.hull()
    assert hull[0] == 1 and hull[-1] == 4 and 3 not in hull
    knowing = against_controls(np.where(right[:, 0], 0, np.where(right[:, 1], 1, 3)), heads, hull)
    assert knowing["less_hull"] > 0.1 and knowing["agreement_sd"] > 5
    assert np.mean(knowing["delta_accuracy"]) == pytest.approx(knowing["less_hull"], abs=1e-6)
    constant = against_controls(np.full(200, hull[0] - 1), heads, hull)
    assert constant["less_hull"] == pytest.approx(0) and constant["agreement_sd"] == 0


def test_the_preferred_rule_follows_dev_of_the_search_sets_only() -> None:
    """A rule that is better on test, or on a set outside the search, is not preferred for that."""
    rows = [
        {"method": "geep", "rule": rule, "dataset": name, "point": "p", "dev": dev, "accuracy": test}
        for rule, name, dev, test in (
            ("quantile", "a", 0.02, 0.1), ("quantile", "b", -0.5, 0.1), ("cuts", "a", 0.01, 0.9), ("cuts", "b", 0.5, 0.9),
        )
    ]  # fmt: skip
    profile = SimpleNamespace(datasets=["a", "b"], search=SimpleNamespace(datasets=["a"]))
    args: Any = SimpleNamespace(point="p")
    settings: Any = SimpleNamespace(profile=profile)
    stored: Any = None
    study = AssignmentRules(settings, args, stored, None)
    study.rows = rows
    assert study.preferred() == {"geep": "quantile"}
    profile.search = None
    assert study.preferred() == {"geep": "cuts"}
