"""The role of a method in the report, such as "predicts its exits" or "is the sequential control".

Methods declare their roles (``harness.contracts.HasRole``) and results store them. Nothing here depends on a method's name,
except for results that were stored before roles existed.
"""

from __future__ import annotations

from harness.results.schema import Result

PREDICTS, VERIFIES = "predicts-exits", "verifies-exits"
CONSTANT, RANDOM, LENGTH = "constant-depth", "random-exits", "length-exits"
SEQUENTIAL, ORACLE = "sequential-exits", "oracle"

# Methods whose results were stored without a role.
_BY_NAME = {
    "geep": PREDICTS,
    "geep-verified": VERIFIES,
    "control-constant": CONSTANT,
    "control-random": RANDOM,
    "control-length": LENGTH,
    "control-sequential": SEQUENTIAL,
    "oracle": ORACLE,
}


def role_of(result: Result) -> str | None:
    """Return the role stored with a result, or that of an older result by its method's name."""
    return result.role or _BY_NAME.get(result.cell.method)
