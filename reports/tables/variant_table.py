"""The variants among the rows: the method that each is based on, and its settings."""

from __future__ import annotations

from reports.analysis.run_contents import VariantRow
from reports.analysis.view import View
from reports.notation.numbers import DASH
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import data_tag, file_tag


def variants_tables(view: View) -> list[Table[VariantRow]]:
    """Return one table with a row per variant; none where all rows are methods as they are registered."""
    if not view.variants:
        return []
    columns: list[Column[VariantRow]] = [
        Column("method", "Variant", lambda row: row.method, numeric=False),
        Column("like", "Like", lambda row: row.like, numeric=False),
        Column("settings", "Its own settings", lambda row: row.settings or DASH, numeric=False),
        Column("needs", "Learns from", lambda row: row.needs or f"as {row.like}", numeric=False),
    ]
    return [
        Table(
            f"variants{file_tag(view.synthetic)}",
            "Variants: methods with settings of their own" + data_tag(all(group.synthetic for group in view.groups)),
            view.variants,
            columns,
            tuple(column.key for column in columns),
            ["All other settings are those of the method that a variant is like; run.json lists them."],
        )
    ]


TABLES = (RunTables("variants", "summary", 20, variants_tables),)
