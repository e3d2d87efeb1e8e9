"""Device cards: what is read, and how bad cards are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import ConfigError, UnknownNameError
from suites.studies.projection.device_card import CARDS, DeviceCard, RateCurve, RateSurface, card_text, read_device_card

Table = dict[str, Any]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("launch",), None, "key 'launch' is missing"),
        (("launch", "value"), -1e-6, "launch.low = -1e-06 is not allowed: give a number above 0 and up to 0.1"),
        (("launch", "value"), 5.0, "launch.low = 5.0 is not allowed: give a number above 0 and up to 0.1"),
        (("launch", "unit"), "us", 'launch.unit = "us" is not allowed: give "s"'),
        (("launch", "source"), "", "launch.source"),
        (("launch", "source"), None, "key 'launch.source' is missing"),
        (("rates", "float32", "stream", "value"), [4.3], "give a number from 1e+06 to 1e+17"),
        (("rates", "float32", "stream", "unit"), "GB/s", 'give one of "B/s", "FLOP/s"'),
        (("rates", "float32", "stream", "at"), [1.0, 2.0], "2 sizes have 1 low and 1 high rates: give one per size"),
        (("rates", "float32", "matrix", "value"), [[1e9, 1e9]], "must be 1 lists (rows) of 1 numbers (width)"),
        (("rates", "float32", "stream"), None, "key 'rates.float32.stream' is missing"),
        (("rates", "float32", "steam"), {"unit": "B/s"}, "unknown key 'steam': did you mean stream?"),
        (("graph_launch",), None, "key 'graph_launch' is missing: a card of kind 'cuda' needs it"),
        (("kind",), "tpu", 'kind = "tpu" is not allowed: give one of "cpu", "cuda"'),
        (("lunch",), 3, "unknown key 'lunch': did you mean launch?"),
    ],
)
def test_bad_cards_are_refused_in_one_line(
    table: Callable[[str], Table], tmp_path: Path, place: tuple[str, ...], value: object, said: str
) -> None:
    """A constant that is missing, negative, or in another unit is named, with the file and what is allowed."""
    bad = table("cuda")
    inside = bad
    for part in place[:-1]:
        inside = inside[part]
    if value is None:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    path = tmp_path / "bad.toml"
    path.write_text(card_text(bad), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_device_card(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_range_must_rise_and_more_work_must_take_longer(table: Callable[[str], Table], tmp_path: Path) -> None:
    """An exchanged range, and rates by which more rows would take less time, are refused."""
    path = tmp_path / "bad.toml"
    bad = table("cpu")
    bad["launch"] = {"unit": "s", "source": "x", "low": 2e-6, "high": 1e-6}
    path.write_text(card_text(bad), encoding="utf-8")
    with pytest.raises(ConfigError, match="low is above high: exchange them"):
        read_device_card(str(path))
    bad = table("cpu")
    bad["rates"]["float32"]["matrix"] |= {"rows": [1.0, 2.0], "value": [[1e9], [3e9]]}
    path.write_text(card_text(bad), encoding="utf-8")
    with pytest.raises(
        ConfigError, match="size 2 would take less time than 1 at width 8: correct one of the two rates"
    ):
        read_device_card(str(path))


def test_unknown_cards_and_broken_files(tmp_path: Path) -> None:
    """An unknown name lists the known ones; a missing or broken file is one line."""
    with pytest.raises(UnknownNameError, match="did you mean h200"):
        read_device_card("h20")
    with pytest.raises(ConfigError, match=r"cannot read the device card .*missing\.toml"):
        read_device_card(str(tmp_path / "missing.toml"))
    (tmp_path / "broken.toml").write_text("title = ", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read the device card"):
        read_device_card(str(tmp_path / "broken.toml"))


@pytest.mark.parametrize("name", sorted(path.stem for path in CARDS.glob("*.toml")))
def test_cards_of_the_project_name_their_sources_and_survive_writing(name: str) -> None:
    """A shipped card is read, says of every estimate that it is one, and equals itself after writing."""
    found = read_device_card(name)
    assert DeviceCard.model_validate(tomllib.loads(card_text(found.model_dump()))) == found
    assert "788 TFLOP/s" in found.rates["bfloat16"].matrix.source
    assert found.rates["bfloat16"].matrix.high[-1][-1] == 788e12


def test_types_without_rates_are_refused(card: Callable[..., DeviceCard]) -> None:
    """A card that knows float32 only says so."""
    with pytest.raises(ConfigError, match="has no rates of bfloat16, only of float32: choose with --dtype"):
        card("cpu").rates_of("bfloat16")


def test_rates_between_sizes() -> None:
    """Half way on the logarithmic scale, a rate is the geometric mean; beyond the ends it is constant."""
    curve = RateCurve(unit="B/s", source="x", at=[1e2, 1e4], low=[1e6, 1e8], high=[1e6, 1e8])
    assert curve.seconds(1e7, 1e3, fast=True) == pytest.approx(1.0)
    assert curve.seconds(1e7, 1.0, fast=True) == pytest.approx(10.0)
    assert curve.seconds(1e7, 1e9, fast=False) == pytest.approx(0.1)
    surface = RateSurface(
        unit="FLOP/s",
        source="x",
        rows=[1, 100],
        width=[10, 1000],
        low=[[1e6, 1e7], [1e8, 1e8]],
        high=[[1e6, 1e7], [1e8, 1e8]],
    )
    assert surface.seconds(1, 10, 10, fast=True) == pytest.approx(200 / 1e6)
    assert surface.seconds(10, 20, 5, fast=True) == pytest.approx(2000 / 1e7)
    assert surface.seconds(1, 100, 100, fast=True) == pytest.approx(2e4 / 10**6.5)
    assert surface.seconds(0.5, 10, 10, fast=True) == surface.seconds(1, 10, 10, fast=True)


rates = st.lists(st.floats(1e7, 1e12), min_size=3, max_size=3)


@given(rates, st.floats(1, 1e5), st.floats(1, 10))
def test_more_rows_never_take_less_time(found: list[float], rows: float, more: float) -> None:
    """For every card that is accepted, time does not fall with rows, between and beyond its sizes."""
    sizes = [1.0, 30.0, 1000.0]
    try:
        surface = RateSurface(
            unit="FLOP/s",
            source="x",
            rows=sizes,
            width=[8],
            low=[[one] for one in found],
            high=[[one] for one in found],
        )
    except ValueError:
        return
    few, many = (surface.seconds(count, 8, 8, fast=True) for count in (rows, rows * more))
    assert many >= few * (1 - 2e-5)
