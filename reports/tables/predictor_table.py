"""How well exits are predicted: predicted exits against the sequential exit, methods beside controls."""

from __future__ import annotations

from reports.analysis.cell_settings import ROW_SETTING
from reports.analysis.verdicts.prediction_quality import Agreement, PredictorRow
from reports.analysis.view import Group, View, of_group
from reports.notation.numbers import fixed, minus, percent, points2
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable
from reports.tables.shared_columns import METHOD, POINT, dataset_table, setting_columns

HEADING = "How well exits are predicted"
_SEQUENTIAL, _ORACLE = "Against sequential:", "Against oracle:"


def predictor_table(view: View, group: Group) -> Table[PredictorRow] | None:
    """Return the table of one dataset; None where nothing is predicted."""
    rows = of_group(view.predictors, group)
    if not rows:
        return None
    why = "no oracle with per-sample rows in this run under the same conditions"
    unranked = "one of the two never changes, so nothing is ranked"
    uncounted = "this row has no exit table, or the run did not count them"

    def change(key: str, label: str, above: str) -> Column[PredictorRow]:
        form = _signed if label == "layers" else points2
        return Column(key, label, missing=why, group=above, form=form)

    columns: list[Column[PredictorRow]] = [
        *(METHOD, POINT),
        *setting_columns(view),
        Column("tau_b", "Kendall tau-b", missing=unranked, form=lambda value: minus(fixed(value))),
        Column("hit", "Hits %", form=percent),
        Column("within_one", "Within one layer %", form=percent),
        Column("early", "Too early %", form=percent),
        Column("late", "Too late %", form=percent),
        Column("unseen_tokens", "Unseen tokens %", missing=uncounted, form=percent),
        change("accuracy_vs_sequential", "accuracy, points", _SEQUENTIAL),
        change("cost_early", "of it, too early", _SEQUENTIAL),
        change("cost_late", "of it, too late", _SEQUENTIAL),
        change("layers_vs_sequential", "layers", _SEQUENTIAL),
        change("accuracy_vs_oracle", "accuracy, points", _ORACLE),
        change("layers_vs_oracle", "layers", _ORACLE),
    ]
    csv = (
        *("data", "dataset", "kind", "method", "point", *ROW_SETTING, "seeds", "n", "compared_with"),
        *("tau_b", "hit", "within_one", "early", "late", "unseen_tokens", "cost_early", "cost_late"),
        *("accuracy_vs_sequential", "layers_vs_sequential", "accuracy_vs_oracle", "layers_vs_oracle", "marks"),
    )
    names = " or ".join(sorted({row.sequential_row.method for row in rows}))
    notes = [
        f"Predicted exits against the layer where {names} exits on the same weights and samples, at the same point. "
        "Hits: the same layer; too early costs accuracy, too late costs layers. Kendall's tau-b compares the ranks of pairs of "
        "samples and corrects for ties, which are frequent among exits; a predictor without information has about 0.",
        "Verified exits apply a head where the prediction says so: their hits are those of the prediction, their accuracy and "
        "layers are those of the final answer. The oracle exits at the first layer that agrees with full depth.",
    ]
    values = {name: lambda row, name=name: getattr(row.agreement, name) for name in Agreement._fields}
    return dataset_table(
        "predictor", HEADING, group, rows, columns, csv, notes, lowest=False, split="base", values=values
    )


def _signed(value: object) -> str:
    """Return a difference with its sign; without one at zero."""
    text = fixed(value)
    return minus(text) if not text[:1].isdigit() or not float(text.replace(",", "")) else f"+{text}"


TABLES = (DatasetTable("predictor", 20, HEADING, predictor_table, "confusion"),)
