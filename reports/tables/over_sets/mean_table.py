"""Every method at every point, on average over sets."""

from __future__ import annotations

from collections.abc import Callable

from reports.analysis.set_means import SetMean, SetMeans
from reports.analysis.verdicts.equal_cost import LEAST_SETS
from reports.analysis.view import View
from reports.notation.marks import data_tag, file_tag, footnotes
from reports.notation.numbers import DASH, finite, percent, points2, span, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import NO_REFERENCE, method_name


def mean_tables(view: View) -> list[Table[SetMean]]:
    """Return the means of every pool; none for a run of one set."""
    several = len({one.setting for one in view.set_means}) > 1
    return [_table(one, several) for one in view.set_means if one.methods]


def _table(one: SetMeans, several: bool) -> Table[SetMean]:
    extra = " ".join(str(value) for value in one.setting if value not in ("", 0, None)) if several else ""
    untimed = "no time or no reference on some of the sets"
    columns: list[Column[SetMean]] = [
        Column("method", "Method", method_name, numeric=False),
        Column("point", "Point", numeric=False),
        Column("accuracy", "Accuracy % (95 % over test rows)", _accuracy),
        Column("seeds", "95 % over seeds", _over_seeds, missing="one seed only"),
        Column("lost", "Lost, points", form=points2, missing=NO_REFERENCE),
        Column("layers", "Layers %", form=lambda value: percent(value, 0), missing=NO_REFERENCE),
        Column("ratio_linear", "FLOPs ratio", form=times, missing=NO_REFERENCE),
        Column("speedup", "Speed-up", form=times, missing=untimed),
        Column(
            "train_ratio", "Training FLOPs", form=times, missing="nothing was trained for it, or it was not counted"
        ),
    ]
    notes = [
        f"Means over {len(one.counted)} sets, which weigh the same; ratios are geometric means. 95 % over test rows: other rows of "
        "these sets for these fits. 95 % over seeds: Student's interval of the mean over sets, other seeds on the same rows. Lost: "
        "accuracy of the reference less that of the row. Speed-up is wall time. Layers, FLOPs and training in relation to the "
        "reference; training without choosing thresholds.",
        *coverage_notes(one),
        *footnotes(one.methods, lowest=False),
    ]
    values: dict[str, Callable[[SetMean], object]] = {"sets": lambda _: len(one.counted), "data": lambda _: one.data}
    csv = (
        *(
            "data",
            "kind",
            "method",
            "point",
            "sets",
            "seeds",
            "accuracy",
            "low",
            "high",
            "seeds_low",
            "seeds_high",
            "lost",
        ),
        *("layers", "ratio_linear", "speedup", "train_ratio", "marks"),
    )
    name = f"means{f'-{extra}'.replace(' ', '-') if extra else ''}{file_tag(one.synthetic)}"
    caption = f"All sets together: accuracy, cost and speed{f' ({extra})' if extra else ''}{data_tag(one.synthetic)}"
    return Table(name, caption, one.methods, columns, csv, notes, "kind", values)


def coverage_notes(one: SetMeans) -> list[str]:
    """Return which sets and methods means leave out."""
    notes = [
        f"{label} does not count in means, because it lacks {', '.join(names)}." for label, names in one.missing.items()
    ]
    if one.absent:
        notes.append(f"Not measured in this run, or not under the conditions of these rows: {', '.join(one.absent)}.")
    if one.rest:
        notes.append(
            f"Measured on fewer than {100 * LEAST_SETS:g} % of the sets, and without means: {', '.join(one.rest)}."
        )
    return notes


def _accuracy(row: SetMean) -> str:
    return f"{percent(row.accuracy, 2)} ({span(row.low, row.high, percent)})"


def _over_seeds(row: SetMean) -> str:
    return f"{span(row.seeds_low, row.seeds_high, percent)} ({whole(row.seeds)})" if finite(row.seeds_low) else DASH


TABLES = (RunTables("means", "sets", 5, mean_tables),)
