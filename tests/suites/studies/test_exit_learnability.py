"""The study of predictable exits finds what is planted, and nothing where there is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.tokens import TokenSet
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from suites.studies import exit_learnability as study
from suites.studies.exit_learnability import PREDICTORS, features, hashed_tokens, measures, predicted, threshold_at

LAYERS = np.array([1, 2, 4])


@pytest.fixture(scope="module")
def samples() -> tuple[MultiExitModel, TokenSet, np.ndarray]:
    """A model, 400 samples, and an exit that follows from the first token of each."""
    torch.manual_seed(0)
    model = MultiExitModel(Encoder(EncoderShape(4, 48, 2, 24, 40, 16)), 2, (0, 1), "linear")
    torch.nn.init.normal_(model.encoder.word.weight)
    draw = np.random.default_rng(0)
    rows = [draw.integers(5, 40, size=draw.integers(2, 6)).tolist() for _ in range(400)]
    tokens = TokenSet.from_lists(rows, [[0] * len(row) for row in rows])
    return model, tokens, np.array([row[0] % 3 for row in rows])


def test_planted_exits_are_found_where_they_are(samples: tuple[MultiExitModel, TokenSet, np.ndarray]) -> None:
    """Exits that follow from a head's answer, a token or nothing are predicted by those predictors that see it, only."""
    model, tokens, by_token = samples
    draw = torch.Generator().manual_seed(1)
    first = 4 * torch.randn(400, 2, generator=draw)
    edges = np.array([0.3, 0.6])
    seen = features(model, tokens, first, edges)
    assert tuple(seen) == PREDICTORS
    by_head = np.searchsorted(edges, study.normalised_entropy(first).numpy())
    planted = {"head": by_head, "token": by_token, "nothing": np.random.default_rng(2).integers(0, 3, 400)}
    explained: dict[str, dict[str, float]] = {}
    for cause, exits in planted.items():
        explained[cause] = {}
        for name, values in seen.items():
            found = predicted(values[:300], exits[:300], values[300:], LAYERS)
            row = measures(exits[300:], exits[:300], LAYERS, *found)
            explained[cause][name] = float(np.mean(row["explained"]))
    sees = {"head": {"first head", "first head and embedding"}, "token": set(PREDICTORS) - {"length", "first head"}}
    for cause, values in explained.items():
        for name, value in values.items():
            assert value > 0.15 if name in sees.get(cause, ()) else value < 0.08, (cause, name, value)
    assert explained["head"]["first head"] > 0.95


def test_measures_by_hand() -> None:
    """Exits 0 0 1 2 in layers 1 1 2 4: the most common exit hits two, the mean of the learnt rows is 1.5."""
    found = measures(
        np.array([0, 0, 1, 2]),
        np.array([0, 0, 0, 1, 1, 1, 0, 1]),
        LAYERS,
        np.array([0, 1, 1, 1]),
        np.array([1, 1.5, 2, 2.5]),
    )
    assert found["chance"] == 0.5
    assert found["hits"] == [0, -1, 1, 0]
    variance = (0.25 + 0.25 + 0.25 + 6.25) / 4
    assert found["explained"] == pytest.approx([0.25 / variance, 0, 0.25 / variance, 4 / variance], abs=1e-3)
    same = measures(np.zeros(3, int), np.zeros(3, int), LAYERS, np.zeros(3, int), np.ones(3))
    assert same["explained"] == [0, 0, 0] and same["chance"] == 1


def test_what_a_number_of_rows_could_have_found() -> None:
    """2,000 rows find a correlation of .063, which explains .4 %; a constant prediction has no power to state."""
    assert study.detectable_share(2000) == pytest.approx(0.0626**2, rel=0.01)
    found = {"mean": 0.0, "low": 0.0, "high": 0.0, "detectable": 0.0}
    assert study.interval(found) == "+0.0 (+0.0 to +0.0); as good as constant"
    assert study.interval({**found, "detectable": 0.021}).endswith("80 % power for 2.1")


def test_thresholds_meet_the_layers() -> None:
    """The threshold separates as many samples as the mean layers ask for."""
    entropies = torch.tensor([[0.1, 0.3, 0.5, 0.7], [0.0] * 4, [0.0] * 4])
    for layers, leaving in ((1.0, 4), (1.25, 3), (1.5, 2), (2.0, 0)):
        assert int((entropies[0] <= threshold_at(entropies, (0, 1, 3), layers)).sum()) == leaving


def test_tokens_are_hashed_evenly() -> None:
    """Rows of the features are shares; the same token falls into the same bucket, and 1,000 tokens into many."""
    found = hashed_tokens(TokenSet.from_lists([[7, 7, 9, 9], [7], list(range(1000))], [[0] * 4, [0], [0] * 1000]))
    np.testing.assert_allclose(found.sum(1), 1)
    assert sorted(found[0][found[0] > 0]) == [0.5, 0.5]
    assert found[0][found[1] > 0].tolist() == [0.5]
    assert (found[2] > 0).sum() > 500


def test_the_command(mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every method has a row per budget and predictor; figures are pooled with their power, and a second run takes stored rows."""
    out = tmp_path / "e.json"
    options = [
        *mini_options,
        "--methods",
        "fastbert",
        "--set",
        "training.epochs=1",
        "--out",
        str(out),
        "--budgets",
        "0.4,0.7",
    ]
    assert study.main(options) == 0
    data = json.loads(out.read_text(encoding="utf-8"))
    named = [(row["budget"], row["predictor"]) for row in data["rows"]]
    assert named == [(budget, name) for budget in (0.4, 0.7) for name in PREDICTORS]
    assert all(sum(row["exits"]) == 10 and -1 <= row["hits"] <= 1 for row in data["rows"])
    assert [one["explained"]["detectable"] >= 0 for one in data["pooled"]] == [True] * 10
    text = capsys.readouterr().out
    assert "80 % power for" in text and "first head and embedding" in text and "learn from dev rows" in text
    assert study.main(options) == 0


def test_unsuitable_input_is_refused(
    mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method without early exits and budgets outside of 0..1 are refused in one line, with exit code 2 for the options."""
    session: Any = SimpleNamespace(fit=lambda name: object())
    run: Callable[..., Any] = study.ExitLearnability._method
    with pytest.raises(study.ConfigError, match="'mine' has no heads"):
        run(SimpleNamespace(), session, "mine", None)
    for wrong in ("0", "1", "x", "0.5,2"):
        assert study.main([*mini_options, "--budgets", wrong, "--out", str(tmp_path / "e.json")]) == 2
        assert "is no share of the layers" in capsys.readouterr().err
