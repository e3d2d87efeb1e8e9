"""Device cards: what a device needs for products, memory, launches and waits, as measured or published ranges.

A card is a TOML file. Every constant has its unit, its source and a range ``low`` .. ``high``; a measured constant of a calibrated
card has one value. Rates depend on the size of the work and are curves over it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import exp, log
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from harness.contracts import DType
from harness.core.errors import ConfigError, UnknownNameError
from harness.core.settings import StrictSettings, explain
from harness.core.text_formats import read_toml

CARDS = Path(__file__).with_name("cards")
Size = Annotated[float, Field(gt=0)]
# Bounds of plausible values. They catch units: microseconds instead of seconds, TB/s instead of B/s.
Latency = Annotated[float, Field(gt=0, le=1e-1)]
Rate = Annotated[float, Field(ge=1e6, le=1e17)]


class _Ranged(StrictSettings):
    """A constant, or several, from ``low`` to ``high``."""

    source: str = Field(min_length=1)
    low: Any
    high: Any

    @model_validator(mode="before")
    @classmethod
    def _one_value(cls, data: Any) -> Any:
        """``value`` is both ends of the range."""
        if isinstance(data, dict) and "value" in data and not {"low", "high"} & set(data):
            return {
                **{key: held for key, held in data.items() if key != "value"},
                "low": data["value"],
                "high": data["value"],
            }
        return data

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(low > high for low, high in zip(_flat(self.low), _flat(self.high), strict=False)):
            raise ValueError("low is above high: exchange them")
        return self


def _flat(values: Any) -> list[float]:
    return [one for part in values for one in _flat(part)] if isinstance(values, list | tuple) else [values]


class Seconds(_Ranged):
    """A latency in seconds."""

    unit: Literal["s"]
    low: Latency
    high: Latency


class RateCurve(_Ranged):
    """A rate over the size of the work.

    Attributes:
        at: sizes, rising.
        low, high: a rate per size. Between sizes it is interpolated, beyond them it is constant.
    """

    unit: Literal["B/s", "FLOP/s"]
    at: list[Size] = Field(min_length=1)
    low: list[Rate]
    high: list[Rate]

    @model_validator(mode="after")
    def _shape(self) -> Self:
        _require_rising("at", self.at)
        if not len(self.at) == len(self.low) == len(self.high):
            raise ValueError(
                f"{len(self.at)} sizes have {len(self.low)} low and {len(self.high)} high rates: give one per size"
            )
        # The work of attention grows with the square of a sample's tokens.
        work = [size**2 for size in self.at] if self.unit == "FLOP/s" else self.at
        for ends in (self.low, self.high):
            _require_time_to_rise(self.at, work, ends, "")
        return self

    def seconds(self, amount: float, size: float, *, fast: bool) -> float:
        """Return the time of ``amount`` units of work in a piece of ``size``."""
        rates = self.high if fast else self.low
        return amount / exp(_interpolated(self._sizes, [log(rate) for rate in rates], log(max(size, 1e-9))))

    @cached_property
    def _sizes(self) -> list[float]:
        return [log(size) for size in self.at]


class RateSurface(_Ranged):
    """The rate of matrix products over rows and width, the root of inputs times outputs.

    Attributes:
        rows, width: rising.
        low, high: a list per entry of ``rows`` with a rate per entry of ``width``.
    """

    unit: Literal["FLOP/s"]
    rows: list[Size] = Field(min_length=1)
    width: list[Size] = Field(min_length=1)
    low: list[list[Rate]]
    high: list[list[Rate]]

    @model_validator(mode="after")
    def _shape(self) -> Self:
        _require_rising("rows", self.rows)
        _require_rising("width", self.width)
        for table in (self.low, self.high):
            if len(table) != len(self.rows) or any(len(line) != len(self.width) for line in table):
                raise ValueError(f"rates must be {len(self.rows)} lists (rows) of {len(self.width)} numbers (width)")
            for column, width in enumerate(self.width):
                rates = [line[column] for line in table]
                _require_time_to_rise(self.rows, self.rows, rates, f" at width {width:g}")
        return self

    def seconds(self, rows: float, inputs: int, outputs: int, *, fast: bool) -> float:
        """Return the time of a product [rows, inputs] x [inputs, outputs].

        Below the fewest rows of the card, time stays that of the fewest rows.
        """
        table = self.high if fast else self.low
        across = 0.5 * log(inputs * outputs)
        columns = list(zip(*([log(rate) for rate in line] for line in table), strict=True))
        at = max(log(max(rows, 1e-9)), log(self.rows[0]))
        rates = [_interpolated([log(size) for size in self.rows], column, at) for column in columns]
        rate = _interpolated([log(size) for size in self.width], rates, across)
        return 2 * exp(at) * inputs * outputs / exp(rate)


def _interpolated(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """Interpolate linearly; constant beyond the ends."""
    if at <= places[0]:
        return values[0]
    if at >= places[-1]:
        return values[-1]
    right = bisect_right(places, at)
    share = (at - places[right - 1]) / (places[right] - places[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


def _require_rising(name: str, sizes: Sequence[float]) -> None:
    if any(one >= two for one, two in zip(sizes, sizes[1:], strict=False)):
        raise ValueError(f"{name} = {sizes} must rise: sort it")


def _require_time_to_rise(sizes: Sequence[float], work: Sequence[float], rates: Sequence[float], where: str) -> None:
    times = [amount / rate for amount, rate in zip(work, rates, strict=True)]
    for place in range(len(sizes) - 1):
        if times[place + 1] < times[place] * (1 - 1e-5):
            raise ValueError(
                f"size {sizes[place + 1]:g} would take less time than {sizes[place]:g}{where}: correct one of the two rates"
            )


class Rates(StrictSettings):
    """Rates of one number type.

    Attributes:
        matrix: products with weights that come from memory.
        cached: the same with weights that fit into the last cache (``cache_bytes``); by default as ``matrix``.
        attention: FLOP/s over tokens per sample, all queries of a sample.
        first_attention: the same, one query per sample; by default as ``attention``.
        stream: B/s over the bytes that an addition or a copy reads and writes.
        gather, lookup, norm, activation, tanh: the same for picked rows, rows of a table larger than the caches, layer norms,
            GELU, and tanh; by default as ``stream``.
    """

    matrix: RateSurface
    cached: RateSurface | None = None
    attention: RateCurve
    first_attention: RateCurve | None = None
    stream: RateCurve
    gather: RateCurve | None = None
    lookup: RateCurve | None = None
    norm: RateCurve | None = None
    activation: RateCurve | None = None
    tanh: RateCurve | None = None


class DeviceCard(StrictSettings):
    """One device.

    Attributes:
        title: as in tables.
        kind: ``"cpu"``: the host does the work itself. ``"cuda"``: the device runs behind the host, which waits only where the
            executor asks for values.
        attention: ``"ragged"``: over each sample's own tokens; ``"grid"``: over a grid padded to the longest sample.
        launch: host time per operation that is asked for.
        synchronise: host time of a wait, or of reading a single value, beyond the work waited for.
        graph_launch: host time per block that is a CUDA graph; needed for ``compute = "graphs"``.
        kernel: least time of an operation on a device of kind ``"cuda"``.
        host_copy: between host and device, for kind ``"cuda"``.
        cache_bytes: last cache of a CPU.
        reference: time of the product that tells the speed of the machine, during calibration.
        rates: by number type.
        fingerprint: the machine, for calibrated cards.
    """

    title: str = Field(min_length=1)
    kind: Literal["cpu", "cuda"]
    attention: Literal["ragged", "grid"]
    launch: Seconds
    synchronise: Seconds
    graph_launch: Seconds | None = None
    kernel: Seconds | None = None
    host_copy: RateCurve | None = None
    cache_bytes: Annotated[float, Field(ge=0)] = 0
    reference: Seconds | None = None
    rates: dict[DType, Rates] = Field(min_length=1)
    fingerprint: dict[str, Any] = {}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "cuda":
            for name in ("kernel", "host_copy", "graph_launch"):
                if getattr(self, name) is None:
                    raise ValueError(f"key '{name}' is missing: a card of kind 'cuda' needs it")
        return self

    def rates_of(self, dtype: DType) -> Rates:
        """Return the rates of a number type.

        Raises:
            ConfigError: the card has none.
        """
        if dtype not in self.rates:
            raise ConfigError(
                f"card '{self.title}' has no rates of {dtype}, only of {', '.join(self.rates)}: choose with --dtype"
            )
        return self.rates[dtype]


def read_device_card(name: str) -> DeviceCard:
    """Read a card: a path to a TOML file, or the name of a card that comes with the project.

    Raises:
        ConfigError: it cannot be read, or a constant is missing, negative, or in another unit; all problems are listed.
        UnknownNameError: there is no such card.
    """
    path = Path(name).expanduser()
    if path.suffix != ".toml":
        path = CARDS / f"{name}.toml"
        if not path.is_file():
            raise UnknownNameError("device card", name, sorted(one.stem for one in CARDS.glob("*.toml")))
    try:
        return parse_device_card(read_toml(path), str(path if path.parent != CARDS else f"card {name}"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the device card {path} ({error}): give a TOML file, see how-to/projection"
        ) from error


def parse_device_card(table: dict[str, Any], where: str) -> DeviceCard:
    """Validate a card.

    Args:
        where: the file, for error messages.

    Raises:
        ConfigError: lists every problem.
    """
    try:
        return DeviceCard.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        raise ConfigError("; ".join(explain(error, DeviceCard, where))) from error


def card_text(table: Mapping[str, Any], prefix: str = "") -> str:
    """Return a card as TOML: a table of numbers, texts, lists and tables; ``None`` is left out."""
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in table.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    parts = ["\n".join(lines) + "\n"] if lines else []
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)
            inside = card_text(value, f"{prefix}{name}.")
            own = any(held is not None and not isinstance(held, Mapping) for held in value.values())
            parts.append((f"[{prefix}{name}]\n" if own else "") + inside)
    return "\n".join(parts)
