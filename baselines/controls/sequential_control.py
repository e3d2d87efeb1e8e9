"""Control: the sequential entropy exit on GEEP's weights."""

from __future__ import annotations

from baselines.controls.borrowed_geep import BorrowedGeep, GeepControl
from harness.contracts import Role
from harness.toolkit.fitted import SequentialExits


class SequentialGeep(BorrowedGeep, SequentialExits):
    """FastBERT's exit rule on GEEP's weights, at the entropy threshold that GEEP's table was built with."""


class SequentialControl(GeepControl):
    """FastBERT's sequential entropy exit on GEEP's weights."""

    name = "control-sequential"
    role: Role = "sequential-exits"
    borrowed = SequentialGeep
