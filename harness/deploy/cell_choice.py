"""Which cell of a run is exported, and whether it can be."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pandas as pd

from harness.core.errors import ConfigError, ResultError
from harness.results.run_folder import RunFolder, stem
from harness.results.schema import Result

# Controls with these roles rank all samples of a call against each other before any of them runs.
WHOLE_SET = ("constant-depth", "random-exits", "length-exits")
_NEAR, _SHOWN = 0.75, 4


@dataclass(frozen=True)
class ChosenCell:
    """A cell to export.

    Attributes:
        name: its ID (:func:`harness.results.run_folder.stem`).
        result: its measurement.
        rows: its stored answers, one row per test sample.
    """

    name: str
    result: Result
    rows: pd.DataFrame


def choose_cell(run: RunFolder, name: str) -> ChosenCell:
    """Return the cell with an ID: the name of its file in ``RUN/results``, or the last eight characters of that.

    Raises:
        ResultError: there is no such cell, or its rows cannot be read.
        ConfigError: the cell cannot be exported.
    """
    results = {stem(result.cell): result for result in run.results()}
    name = name.strip().removesuffix(".json")
    found = [one for one in results if name == one or (len(name) == 8 and one.endswith(f"--{name}"))]
    if len(found) != 1:
        raise ResultError(_unknown(run, name, list(results)))
    result = results[found[0]]
    if reason := _refusal(result):
        raise ConfigError(f"cell {found[0]} cannot be exported: {reason}")
    return ChosenCell(found[0], result, run.samples(result.cell))


def _unknown(run: RunFolder, name: str, known: list[str]) -> str:
    near = sorted((one for one in known if _alike(name, one)), key=lambda one: -_alike(name, one))[:_SHOWN]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no cell '{name}' in {run.path}: {hint}its {len(known)} cells are the files in {run.path / 'results'}"


def _alike(name: str, cell: str) -> float:
    """Return how much a name is like that of a cell, from its dataset or its method on; 0 if any part is not.

    The hash at the end does not count: no one remembers it.
    """
    parts = cell.split("--")[:-1]
    given = name.split("--")[: len(parts)]

    def like(parts: list[str]) -> float:
        ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in zip(given, parts, strict=False)]
        return sum(ratios) if len(given) <= len(parts) and min(ratios) >= _NEAR else 0.0

    return max(like(parts), like(parts[1:]))


def _refusal(result: Result) -> str:
    """Return why a cell cannot be exported; empty if it can."""
    if result.kind == "bound":
        return "it is a bound, which knows answers beforehand that no program can know: choose a cell of kind method"
    if result.role in WHOLE_SET or (result.kind == "control" and result.role is None):  # older results state no role
        return (
            "it is a control that looks at all samples before it answers the first: choose a cell of kind method, or of "
            "another control"
        )
    if result.binding is None:
        return "it was measured by a version that did not record what it depends on: measure it again"
    return ""
