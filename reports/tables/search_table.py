"""The search for training settings: what was tried for each method, with the same number of trials, and what won on dev."""

from __future__ import annotations

from collections.abc import Sequence

from reports.analysis.run_contents import SearchRow
from reports.analysis.view import View
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import percent2, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables

_NOTE = (
    "Dev score: mean over the datasets of the search; accuracy at full depth, or, for methods with early exits, the area under "
    "accuracy over layers. Test rows were not used. At limit: trainings whose best epoch was the last one allowed."
)


def search_tables(view: View) -> Sequence[Table[SearchRow]]:
    """Return one table with a row per method and settings; none if the run used no search."""
    rows = view.searches
    if not rows:
        return []
    synthetic = all(group.synthetic for group in view.groups)
    columns: list[Column[SearchRow]] = [
        Column("method", "Method", numeric=False),
        Column("settings", "Settings tried", numeric=False),
        Column("fits", "Fits", form=whole),
        Column("steps", "Steps", form=whole),
        Column("score", "Dev score %", form=percent2, missing="a training did not converge"),
        Column("at_limit", "At limit", form=whole),
        Column("chosen", "Chosen", lambda row: "yes" if row.chosen else row.failed, numeric=False),
    ]
    csv = ("method", "settings", "datasets", "fits", "steps", "score", "at_limit", "chosen", "failed")
    where = ", ".join(dict.fromkeys(row.datasets for row in rows))
    caption = f"Search for training settings on dev of {where}" + data_tag(synthetic)
    return [Table(f"search{file_tag(synthetic)}", caption, rows, columns, csv, [_NOTE], split="method")]


TABLES = (RunTables("search", "checks", 30, search_tables, "Search for training settings: {rows} settings"),)
