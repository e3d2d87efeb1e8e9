"""Strict settings and their error messages."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from harness.core.settings import StrictSettings, explain

WHERE = "profile mine.toml, [method.x]"


class Inner(StrictSettings):
    size: int = Field(default=1, ge=1)


class Example(StrictSettings):
    epochs: int = Field(default=3, ge=1)
    rate: float = Field(default=0.1, gt=0)
    share: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "float32"] = "auto"
    layers: int | None = Field(default=None, ge=1, le=4)
    student: str | dict[str, str] = ""
    flag: bool = False
    speeds: list[float] = Field(default=[0.5], min_length=1)
    inner: Inner = Inner()

    @field_validator("speeds")
    @classmethod
    def _once(cls, speeds: list[float]) -> list[float]:
        if len(set(speeds)) < len(speeds):
            raise ValueError("give each speed once")
        return speeds

    @model_validator(mode="after")
    def _together(self) -> Example:
        if self.flag and self.student:
            raise ValueError("flag and student exclude each other: leave one out")
        return self


def lines(given: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Example.model_validate(given)
    return explain(caught.value, Example, WHERE)


@pytest.mark.parametrize(
    "given, line",
    [
        ({"epochs": 0}, "epochs = 0 is not allowed: give an integer of at least 1"),
        ({"epochs": "3"}, 'epochs = "3" is not allowed: give an integer of at least 1, without quotes'),
        ({"epochs": True}, "epochs = true is not allowed: give an integer of at least 1"),
        ({"epochs": 1.5}, "epochs = 1.5 is not allowed: give an integer of at least 1"),
        ({"rate": 0}, "rate = 0 is not allowed: give a number above 0"),
        ({"rate": False}, "rate = false is not allowed: give a number above 0"),
        ({"rate": float("inf")}, "rate = Infinity is not allowed: give a number above 0"),
        ({"share": 1}, "share = 1 is not allowed: give a number of at least 0 and below 1"),
        ({"precision": "half"}, 'precision = "half" is not allowed: give one of "auto", "float32"'),
        ({"layers": 5}, "layers = 5 is not allowed: give an integer from 1 to 4"),
        ({"layers": [1]}, "layers = [1] is not allowed: give an integer from 1 to 4"),
        ({"flag": 1}, "flag = 1 is not allowed: give true or false"),
        (
            {"student": 7},
            "student = 7 is not allowed: give text in quotes or a table whose values are each text in quotes",
        ),
        ({"speeds": 0.5}, "speeds = 0.5 is not allowed: give a non-empty list whose items are each a number"),
        ({"speeds": []}, "speeds = [] is not allowed: give a non-empty list whose items are each a number"),
        ({"speeds": [0.5, "1"]}, 'speeds[1] = "1" is not allowed: give a number, without quotes'),
        ({"speeds": [1, 1.0]}, "speeds = [1, 1.0]: give each speed once"),
        ({"inner": {"size": 0}}, "inner.size = 0 is not allowed: give an integer of at least 1"),
        ({"inner": {"sise": 2}}, "unknown key 'sise': did you mean size? known keys: size"),
        ({"flag": True, "student": "a"}, "flag and student exclude each other: leave one out"),
    ],
)
def test_a_problem_is_one_line(given: dict[str, Any], line: str) -> None:
    """The line names the place of the value, the problem and the allowed values."""
    assert lines(given) == [f"{WHERE}: {line}"]


def test_all_problems_are_reported_at_once() -> None:
    """Every wrong key has its own line, and an unknown key suggests the nearest one."""
    found = lines({"epoch": 3, "rates": 1, "share": 2, "layers": 0})
    assert [line.removeprefix(f"{WHERE}: ").split(":")[0] for line in sorted(found)] == [
        "layers = 0 is not allowed",
        "share = 2 is not allowed",
        "unknown key 'epoch'",
        "unknown key 'rates'",
    ]
    assert "did you mean epochs?" in " ".join(found) and "did you mean rate?" in " ".join(found)


def test_a_long_value_is_shortened() -> None:
    """An error never repeats more than 80 characters of a value."""
    (line,) = lines({"precision": "x" * 500})
    assert len(line) < 200


def test_whole_numbers_are_accepted_for_numbers() -> None:
    """A profile may write 1 where the setting is a number with decimals."""
    assert Example.model_validate({"rate": 1}).rate == 1.0


def test_settings_are_frozen() -> None:
    """A model cannot be changed after validation."""
    with pytest.raises(ValidationError):
        Example().epochs = 4  # type: ignore[misc]
