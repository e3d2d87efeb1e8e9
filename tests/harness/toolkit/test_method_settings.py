"""Settings that methods share."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.core.errors import ConfigError
from harness.toolkit.method_settings import BudgetSettings, MethodSettings, Recipe, SpeedSettings


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ({"epochs": 0}, "an integer of at least 1"),
        ({"epochs": 2.5}, "an integer of at least 1"),
        ({"epochs": True}, "an integer of at least 1"),
        ({"batch_size": 0}, "an integer of at least 1"),
        ({"learning_rate": 0}, "a number above 0"),
        ({"learning_rate": "1e-3"}, "a number above 0, without quotes"),
        ({"learning_rate": math.nan}, "a number above 0"),
        ({"warmup": 1}, "a number of at least 0 and below 1"),
        ({"weight_decay": -0.1}, "a number of at least 0"),
        ({"clip": 0}, "a number above 0"),
        ({"head_rate": 0}, "a number above 0"),
        ({"precision": "half"}, 'one of "auto", "float32", "bfloat16"'),
        ({"head": "none"}, 'one of "fastbert", "linear"'),
        ({"head": ["linear"]}, 'one of "fastbert", "linear"'),
        ({"speeds": 0.5}, "a non-empty list whose items are each a number from 0 to 1"),
        ({"speeds": "0.5"}, "a non-empty list whose items are each a number from 0 to 1"),
        ({"speeds": []}, "a non-empty list whose items are each a number from 0 to 1"),
        ({"speeds": [1.5]}, "a number from 0 to 1"),
        ({"speeds": [True]}, "a number from 0 to 1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_allowed_ones(setting: dict[str, Any], allowed: str) -> None:
    """The message names the method, the key and the allowed values, and nothing else."""
    (key,) = setting
    with pytest.raises(ConfigError) as caught:
        MethodSettings.read(setting, "method 'm'")
    message = str(caught.value)
    assert message.startswith(f"method 'm': {key}") and message.endswith(f"give {allowed}")
    assert ";" not in message


def test_all_wrong_values_are_named_at_once() -> None:
    """One error lists every problem, and an unknown key with the nearest known one."""
    with pytest.raises(ConfigError, match="epochs = 0.*did you mean batch_size.*") as caught:
        MethodSettings.read({"epochs": 0, "batchsize": 3}, "method 'm'")
    assert str(caught.value).count("method 'm': ") == 2


@pytest.mark.parametrize("wrong", ["0.5", [0], [1.2], [True], ["half"], [], [0.5, 0.5], [0.5, 0.50000001], [math.nan]])
def test_budgets_are_shares_of_the_full_depth(wrong: Any) -> None:
    """Budgets are numbers above 0 and up to 1, each with its own name."""
    with pytest.raises(ConfigError, match="budgets"):
        BudgetSettings.read({"budgets": wrong}, "m")


def test_points_are_named_after_budgets_and_speeds() -> None:
    """Budgets are sorted, speeds are not; names do not depend on the choice on dev."""
    assert BudgetSettings(budgets=[0.75, 1, 0.25]).point_names == ["budget=0.25", "budget=0.75", "budget=1"]
    assert SpeedSettings(speeds=[0.5, 0, 1]).point_names == ["speed=0.5", "speed=0", "speed=1"]
    assert MethodSettings().point_names == ["full"]


def test_a_recipe_can_be_changed() -> None:
    """None keeps a value; clipping may be switched off."""
    assert Recipe(epochs=2).changed(epochs=None, learning_rate=0.5) == Recipe(epochs=2, learning_rate=0.5)
    assert Recipe.model_validate({"clip": math.inf}).clip == math.inf
