"""Per-sample rows of cells, validated before use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from harness.core.errors import ResultError
from harness.results.run_folder import RunFolder
from harness.results.schema import Cell, Result

# What a report computes from rows; "index" is the row of the test split.
COLUMNS = ("correct", "exit_layer", "predicted_exit", "difficulty")
Reader = Callable[[Cell], "pd.DataFrame | None"]


class SampleReader:
    """Rows of cells; a file that cannot be used becomes a problem to report and does not stop the report.

    Attributes:
        problems: one sentence each, in the order found.
        stripped: the run has no per-sample rows at all, like published runs: one problem instead of one per cell.
    """

    def __init__(self, run: RunFolder, results: Sequence[Result] = ()) -> None:
        self.run = run
        self.problems: list[str] = []
        self._results: Mapping[Cell, Result] = {result.cell: result for result in results}
        self.stripped = bool(results) and not any(run.samples_path(result.cell).exists() for result in results)
        if self.stripped:
            self.problems.append(
                "they were removed from this run; paired tests, predictor quality and difficulty are missing."
            )
        self._read: dict[Cell, pd.DataFrame | None] = {}

    def read(self, cell: Cell) -> pd.DataFrame | None:
        """Return :data:`COLUMNS` indexed by test row, in its order; None where there is no usable file."""
        if cell not in self._read:
            self._read[cell] = None if self.stripped else self._load(cell)
        return self._read[cell]

    def _load(self, cell: Cell) -> pd.DataFrame | None:
        try:
            frame = self.run.samples(cell)
        except ResultError as error:
            self.problems.append(str(error))
            return None
        if fault := self._fault(cell, frame):
            self.problems.append(f"{self.run.samples_path(cell)} {fault}: run the cell again")
            return None
        frame = frame[["index", *COLUMNS]].astype({"correct": bool}).set_index("index")
        return frame if frame.index.is_monotonic_increasing else frame.sort_index()

    def _fault(self, cell: Cell, frame: pd.DataFrame) -> str:
        """Return why these rows cannot be used; empty where they can."""
        names = ["index", *COLUMNS]
        if missing := [name for name in names if name not in frame]:
            return f"has no column {missing[0]}"
        if holes := [name for name in names if frame[name].isna().any()]:
            return f"has empty values in column {holes[0]}"
        if wrong := [name for name in names if not is_numeric_dtype(frame[name])]:
            return f"has values that are not numbers in column {wrong[0]}"
        if not frame["index"].is_unique:
            return "has several rows for the same test sample"
        if (result := self._results.get(cell)) is None:
            return ""
        quality = result.quality
        if len(frame) != quality.n:
            return f"has {len(frame)} rows, but the result counts {quality.n} test samples"
        if np.isfinite(quality.accuracy) and abs(float(frame["correct"].mean()) - quality.accuracy) * quality.n > 0.5:
            return (
                f"gives an accuracy of {frame['correct'].mean():.4f}, but the result says {quality.accuracy:.4f}: "
                "they are not from the same measurement"
            )
        return ""


def paired_samples(
    ours: Sequence[Cell], theirs: Sequence[Cell], read: Reader
) -> dict[int, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return seed -> rows of both sides, for every seed that both have and that can be read."""
    by_seed = {cell.seed: read(cell) for cell in theirs}
    found = {}
    for cell in ours:
        mine, other = (read(cell), by_seed[cell.seed]) if cell.seed in by_seed else (None, None)
        if mine is not None and other is not None:
            found[cell.seed] = mine, other
    return found
