"""Tables of significance: every method against its rivals, and curves of accuracy against FLOPs."""

from __future__ import annotations

from reports.analysis.cell_settings import SETTING
from reports.analysis.curves import BASELINE
from reports.analysis.noise import FEWEST
from reports.analysis.rival_tests import MARGIN, RATIO
from reports.analysis.view import View
from reports.notation.marks import footnotes, marked
from reports.notation.numbers import DASH, finite, flops_unit, p_value, percent, points, span, times, whole
from reports.tables.formats import Column, Row, Table
from reports.tables.summary import data_tag, noise_column, noise_notes, setting_columns

_MARGIN = f"{100 * MARGIN:g} points"


def significance_tables(view: View) -> list[Table]:
    """Both tables; real and synthetic data apart."""
    return [*rival_tables(view), *curve_tables(view)]


def rival_tables(view: View) -> list[Table]:
    """Every method against bert, fastbert, whom the profile names and, a variant, what it is like."""
    tables: list[Table] = []
    if not len(view.rivals):
        return tables
    unread = "per-sample rows are missing or share no seed, or the rival was not measured at this point and setting"
    untimed = "the two have no common reference, or the rival was not measured at this point and setting"
    unjudged = f"per-sample rows or single passes are missing, or fewer than {FEWEST} A/A pairs were recorded"
    columns = [
        Column("dataset", "Dataset", lambda r: r["dataset"], numeric=False),
        Column("method", "Method", lambda r: marked(str(r["method"]), r), numeric=False),
        Column("point", "Point", lambda r: r["point"], numeric=False),
        *setting_columns(view),
        Column("rival", "Rival", _rival, numeric=False),
        Column("pairs", "Test rows", lambda r: whole(r["pairs"]) if r["pairs"] else DASH, missing=unread),
        Column("difference", "Accuracy difference, points (95 % interval)", _difference, missing=unread),
        Column("p", "p exact", lambda r: p_value(r["p"]), missing=unread),
        Column("p_holm", "p adjusted", lambda r: p_value(r["p_holm"]), missing=unread),
        Column("rival_speedup", "Speed-up over rival", _speedup, missing=untimed),
        noise_column(),
        Column(
            "lowest_difference",
            "accuracy, points",
            lambda r: points(r["lowest_difference"], 2),
            missing=unjudged,
            group="At worst:",
        ),
        Column("lowest_speedup", "speed-up", lambda r: times(r["lowest_speedup"]), missing=unjudged, group="At worst:"),
        Column("passed", f"Faster and not worse by {_MARGIN}", _passed, numeric=False, missing=unjudged),
    ]
    csv = (
        *("data", "dataset", "method", "point", *SETTING, "rival", "rival_point", "seeds", "pairs"),
        *("accuracy", "rival_accuracy", "difference", "difference_low", "difference_high", "wins", "losses", "p"),
        *("p_holm", "rival_speedup", "speed_from", "noise_high", "lowest_difference", "lowest_speedup"),
        *("not_worse", "faster", "passed", "marks"),
    )
    several = view.rivals["seeds"].max() > 1
    notes = [
        (
            "The rival stands at the same point, or at its base (speed=0.5 of speed=0.5/once); budgets meet the speed nearest in "
            "mean layers; a method without either meets the rival's most accurate point. Difference: method less rival on the "
            "same test rows, interval by paired bootstrap"
            + (" of rows with all their seeds" if several else "")
            + "; p: exact McNemar test"
            + (", over seeds a sign test on each row's wins minus losses" if several else "")
            + "; adjusted (Holm): one family is one method against one rival, over all datasets and points of this table."
        ),
        (
            "Speed-up over rival: of the same rounds where the rival is the reference; “(ratio)”: the ratio of both speed-ups over "
            "the same reference, measured beside different passes, so that two such noises add."
        ),
        (
            f"Faster and not worse: with 95 % confidence each, less than {_MARGIN} of accuracy lost (Tango's paired bound) and a "
            "median speed-up beyond what the reference over itself reaches by chance"
            + (", for every seed alone; at worst is the worst seed." if several else ".")
            + " Few test rows cannot pass: without any row that differs it takes about "
            f"{whole(2.7 / MARGIN)}."
        ),
    ]
    for name, part in view.rivals.groupby("data"):
        synthetic = name == "synthetic"
        tables.append(
            Table(
                "rivals-synthetic" if synthetic else "rivals",
                "Against rivals: p adjusted (Holm) over the datasets and points of one method and one rival"
                + data_tag(synthetic),
                part,
                columns,
                csv,
                [*notes, *noise_notes(part), *footnotes(part)],
                split="label",
            )
        )
    return tables


def _rival(row: Row) -> str:
    at = row["rival_point"]
    if not isinstance(at, str):
        return f"{row['rival']}, no such point"
    return str(row["rival"]) if at in (row["point"], "full") else f"{row['rival']} at {at}"


def _difference(row: Row) -> str:
    if not finite(row["difference"]):
        return DASH
    low, high = row["difference_low"], row["difference_high"]
    # An en dash would run into a minus sign.
    bounds = f"{points(low, 2)} to {points(high, 2)}" if finite(low) and finite(high) else DASH
    return f"{points(row['difference'], 2)} ({bounds})"


def _speedup(row: Row) -> str:
    return times(row["rival_speedup"]) + (" (ratio)" if row["speed_from"] == RATIO else "")


def _passed(row: Row) -> str:
    if not isinstance(row["passed"], bool):
        return DASH
    if row["passed"]:
        return "yes"
    return (
        "no: both" if not (row["not_worse"] or row["faster"]) else "no: speed" if row["not_worse"] else "no: accuracy"
    )


def curve_tables(view: View) -> list[Table]:
    """Area and score of every curve."""
    tables: list[Table] = []
    for name, part in view.curves.groupby("data") if len(view.curves) else ():
        synthetic = name == "synthetic"
        divisor, unit = flops_unit(part["budget_high"].max())

        def cost(low: float, high: float, divisor: float = divisor) -> str:
            return span(low / divisor, high / divisor)

        columns = [
            Column("dataset", "Dataset", lambda r: r["dataset"], numeric=False),
            Column("method", "Method", lambda r: marked(str(r["method"]), r), numeric=False),
            Column("variant", "Variant", lambda r: r["variant"] or DASH, numeric=False, missing="points without one"),
            *setting_columns(view),
            Column("points", "Points", lambda r: whole(r["points"])),
            Column(
                "cost_low",
                f"{unit}FLOPs linear",
                lambda r, c=cost: c(r["cost_low"], r["cost_high"]),  # type: ignore[misc]
            ),
            Column(
                "budget_high",
                f"Budgets, {unit}FLOPs",
                lambda r, c=cost: c(r["budget_low"], r["budget_high"]),  # type: ignore[misc]
            ),
            Column(
                "area",
                "Area %",
                lambda r: percent(r["area"], 2),
                missing="no budget below the dearest buys a point",
            ),
            Column(
                "score",
                f"Score against {BASELINE}, points",
                lambda r: points(r["score"], 2),
                missing=f"no {BASELINE} under the same conditions, or every point is cheaper than all of it",
            ),
            Column("score_used", "Points scored", lambda r: f"{whole(r['score_used'])} of {whole(r['points'])}"),
        ]
        csv = (
            *("data", "dataset", "kind", "method", "variant", *SETTING, "points", "cost_low", "cost_high"),
            *("budget_low", "budget_high", "area", "score", "score_used", "marks"),
        )
        notes = [
            (
                "Area: mean over budgets, on a logarithmic scale, of the best accuracy within the budget; 0 where the "
                "budget buys no point, so a method with one dear point has little. Budgets are those of the dataset: areas compare "
                "inside a dataset only."
            ),
            (
                f"Score (ELUE, Liu et al., NAACL 2022): mean over points of accuracy less that of {BASELINE} at the same FLOPs, "
                "straight lines between its points. A dearer point meets its most expensive one, a cheaper point is not scored."
            ),
        ]
        tables.append(
            Table(
                "curves-synthetic" if synthetic else "curves",
                f"Curves of accuracy against FLOPs: area, and score at matched cost{data_tag(synthetic)}",
                part,
                columns,
                csv,
                notes + footnotes(part),
                split="label",
            )
        )
    return tables
