"""Each curve of accuracy against FLOPs in two numbers: the area under it, and its score at matched cost."""

from __future__ import annotations

from reports.analysis.curves import Curve
from reports.analysis.view import View, by_data
from reports.notation.marks import marked
from reports.notation.numbers import DASH, flops_unit, percent, points, span, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import DATASET, run_table, setting_columns

HEADING = "Curves of accuracy against FLOPs: area, and score at matched cost"


def curve_tables(view: View) -> list[Table[Curve]]:
    """Return area and score of every curve; real and synthetic data apart."""
    return [_table(view, synthetic, curves) for synthetic, curves in by_data(view.curves)]


def _table(view: View, synthetic: bool, curves: list[Curve]) -> Table[Curve]:
    divisor, unit = flops_unit(max(curve.budget_high for curve in curves))
    baseline = " or ".join(sorted({curve.baseline for curve in curves if curve.baseline})) or "constant depth"
    columns: list[Column[Curve]] = [
        DATASET,
        Column("method", "Method", lambda row: marked(row.method, row.marks), numeric=False),
        Column("variant", "Variant", lambda row: row.variant or DASH, numeric=False, missing="points without one"),
        *setting_columns(view),
        Column("points", "Points", lambda row: whole(row.points)),
        Column("cost_low", f"{unit}FLOPs linear", lambda row: span(row.cost_low / divisor, row.cost_high / divisor)),
        Column(
            "budget_high",
            f"Budgets, {unit}FLOPs",
            lambda row: span(row.budget_low / divisor, row.budget_high / divisor),
        ),
        Column("area", "Area %", lambda row: percent(row.area, 2), missing="no budget below the highest buys a point"),
        Column(
            "score",
            f"Score against {baseline}, points",
            lambda row: points(row.score, 2),
            missing="no control of constant depth under the same conditions, or every point is cheaper than all of its points",
        ),
        Column("score_used", "Points scored", lambda row: f"{whole(row.score_used)} of {whole(row.points)}"),
    ]
    notes = [
        "Area: mean over budgets, on a logarithmic scale, of the best accuracy within the budget; 0 where the budget buys no "
        "point, so that a method with one expensive point has a small area. Budgets are those of the dataset: compare areas within "
        "a dataset only.",
        f"Score (ELUE, Liu et al., NAACL 2022): mean over points of accuracy less that of {baseline} at the same FLOPs, on "
        "straight lines between its points. A more expensive point is compared with its most expensive one, a cheaper point is "
        "not scored.",
    ]
    csv = (
        *("data", "dataset", "kind", "method", "variant", *view.varying, "points", "cost_low", "cost_high"),
        *("budget_low", "budget_high", "area", "score", "score_used", "marks"),
    )
    return run_table("curves", HEADING, synthetic, curves, columns, csv, notes, lowest=False)


TABLES = (RunTables("curves", "controls", 40, curve_tables, HEADING),)
