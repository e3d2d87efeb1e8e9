"""A card gives back the seconds that it was made from, at the sizes that were measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.contracts import DType
from suites.studies.projection.calibration import ROW, Calibration
from suites.studies.projection.device_card import parse_device_card

KINDS = {"stream": 3, "gather": 2, "lookup": 2, "norm": 2, "activation": 2, "tanh": 2}  # tensors read and written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measured_sizes_take_the_measured_time(table: Callable[[str], dict[str, Any]], dtype: DType) -> None:
    """Sizes are the bytes that an operation really moves: whole rows, and three tensors for an addition."""
    made = Calibration("cpu", dtype)
    sizes = range(len(made.moved))
    seconds = {f"{kind} {made.moved[i]}": 1e-6 * 3**i for kind in KINDS for i in sizes}
    seconds |= {
        f"{kind} {r} {w}": 1e-9 * r * w for kind in ("matrix", "cached") for r in made.rows for w in made.widths
    }
    seconds |= {f"{kind} {t}": 1e-6 * t for kind in ("attention", "first_attention") for t in made.tokens}
    rates = parse_device_card({**table("cpu"), "rates": {dtype: made.rates(seconds, 0.0)}}, "made").rates_of(dtype)
    for kind, tensors in KINDS.items():
        for place in sizes:
            rows = max(1, made.moved[place] // made.size // ROW // 2)
            moved = tensors * rows * ROW * made.size
            assert getattr(rates, kind).seconds(moved, moved, fast=True) == pytest.approx(1e-6 * 3**place, rel=1e-4)
    assert rates.matrix.seconds(64, 512, 512, fast=True) == pytest.approx(1e-9 * 64 * 512, rel=1e-4)
    for tokens in made.tokens:
        samples = 2048 // tokens
        assert rates.attention.seconds(4 * ROW * samples * tokens**2, tokens, fast=True) == pytest.approx(1e-6 * tokens)
        assert rates.first_attention is not None
        first = rates.first_attention.seconds(4 * 128 * samples * tokens, tokens, fast=True)
        assert first == pytest.approx(1e-6 * tokens, rel=1e-4)
