"""What the variants among the rows are: like which method, with which settings."""

from __future__ import annotations

import pandas as pd

from reports.analysis.view import View
from reports.notation.numbers import DASH
from reports.tables.formats import Column, Table
from reports.tables.summary import data_tag


def variants_tables(view: View) -> list[Table]:
    """One table with a row per variant; none where all rows are methods as they are registered."""
    if not view.variants:
        return []
    synthetic = all(group.synthetic for group in view.groups)
    columns = [
        Column("method", "Variant", lambda r: str(r["method"]), numeric=False),
        Column("like", "Like", lambda r: str(r["like"]), numeric=False),
        Column("settings", "Its own settings", lambda r: r["settings"] or DASH, numeric=False),
        Column("needs", "Learns from", lambda r: r["needs"] or f"as {r['like']}", numeric=False),
    ]
    return [
        Table(
            "variants" + ("-synthetic" if view.synthetic else ""),
            "Variants: methods with settings of their own" + (data_tag(True) if synthetic else ""),
            pd.DataFrame(view.variants),
            columns,
            tuple(column.key for column in columns),
            ["All other settings are those of the method that a variant is like, as run.json has them."],
        )
    ]
