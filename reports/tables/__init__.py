"""The tables of a report. Imports ``reports.analysis`` and ``reports.notation``.

To add a table, add one file to this folder or one below it: :mod:`reports.tables.catalogue` finds every module with a ``TABLES``.
For example, ``reports/tables/my_table.py``::

    def my_table(view: View, group: Group) -> Table[ResultRow]:
        columns = [*identity_columns(view), Column("speedup", "Speed-up", lambda row: times(row.speedup))]
        return dataset_table("mine", "Mine", group, view.of(group), columns, csv=("method", "point", "speedup"))

    TABLES = (DatasetTable("mine", 75, "My own table", my_table),)

It then appears on the page, in ``report.md``, and as Markdown, CSV and LaTeX in ``report/tables/``. A table about the whole run
is a :class:`reports.tables.catalogue.RunTables`. File names and captions of synthetic data must contain the word "synthetic".
"""
