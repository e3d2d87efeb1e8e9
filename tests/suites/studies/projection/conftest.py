"""Device cards with round numbers, so that times can be added up by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from suites.studies.projection.device_card import DeviceCard, parse_device_card

Table = dict[str, Any]


def flat(unit: str, value: float) -> Table:
    """A rate that does not depend on the size of the work."""
    return {"unit": unit, "source": "by hand", "at": [1.0], "value": [value]}


def latency(value: float) -> Table:
    """A latency in seconds."""
    return {"unit": "s", "source": "by hand", "value": value}


CPU: Table = {
    "title": "hand-made CPU",
    "kind": "cpu",
    "attention": "grid",
    "launch": latency(1e-6),
    "synchronise": latency(1e-3),
    "rates": {
        "float32": {
            "matrix": {"unit": "FLOP/s", "source": "by hand", "rows": [1.0], "width": [8.0], "value": [[1e9]]},
            "attention": flat("FLOP/s", 5e8),
            "stream": flat("B/s", 1e8),
        }
    },
}
CUDA: Table = {
    **CPU,
    "title": "hand-made GPU",
    "kind": "cuda",
    "attention": "ragged",
    "graph_launch": latency(2e-6),
    "kernel": latency(1e-7),
    "host_copy": flat("B/s", 1e7),
}


@pytest.fixture
def table() -> Callable[[str], Table]:
    """Return a function that gives a copy of the table of a card, ``"cpu"`` or ``"cuda"``."""
    return lambda kind: deepcopy({"cpu": CPU, "cuda": CUDA}[kind])


@pytest.fixture
def card(table: Callable[[str], Table]) -> Callable[..., DeviceCard]:
    """Return a function that gives a card with some keys changed."""
    return lambda kind, **changes: parse_device_card({**table(kind), **changes}, "card.toml")
