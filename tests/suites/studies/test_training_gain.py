"""The study of training: last layers against the reference, and areas against a rival."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import ConfigError
from suites.studies import training_gain


def test_last_layers_and_areas_are_compared(
    mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every method has a row per dataset and seed; the reference and the rival are compared with all others but themselves."""
    out = tmp_path / "t.json"
    options = ["--methods", "bert,fastbert,geep", "--seeds", "0,1", "--set", "training.epochs=1", "--out", str(out)]
    assert training_gain.main([*mini_options, *options]) == 0
    data = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["method"], row["seed"]) for row in data["rows"]] == [
        (method, seed) for seed in (0, 1) for method in ("bert", "fastbert", "geep")
    ]
    for row in data["rows"]:
        assert 0 <= row["area"] <= 1 and len(row["accuracy"]) == len(row["layers"])
        if row["method"] == "bert":
            assert row["area"] == pytest.approx(row["accuracy"][-1])
    pooled = {row["method"]: row for row in data["pooled"]}
    assert pooled["bert"] == {"method": "bert", "last_layer": None, "area": None}
    # FastBERT's last layer is that of bert.
    assert pooled["fastbert"]["last_layer"]["mean"] == 0 and pooled["fastbert"]["area"] is None
    means = {name: [row["accuracy"][-1] for row in data["rows"] if row["method"] == name] for name in ("bert", "geep")}
    assert pooled["geep"]["last_layer"]["mean"] == pytest.approx((sum(means["geep"]) - sum(means["bert"])) / 2)
    assert pooled["geep"]["area"]["detectable"] >= 0
    text = capsys.readouterr().out
    assert "80 % power for" in text and "last layer less bert" in text


def test_a_method_without_a_model_is_refused() -> None:
    """A plug-in that runs no model of this project has no layers to compare; the message names it."""
    session: Any = SimpleNamespace(fitted=lambda name: object())
    with pytest.raises(ConfigError, match="method 'mine' is no model of this project's encoder"):
        training_gain.quality_on_test(session, "mine")
