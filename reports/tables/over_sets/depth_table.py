"""What depth is worth on every set: accuracy after every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.analysis.depth_worth import DepthRow
from reports.analysis.verdicts.verdict_words import LEAST_DEPTH
from reports.analysis.view import View, by_data
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import DASH, percent, points, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables

TEXT = "What depth is worth: test accuracy of the heads after every layer"
COUNTS, NO_CLAIM = "depth counts", "no claim about exits rests on this set"


def depth_tables(view: View) -> list[Table[DepthRow]]:
    """Return one row per set; real and synthetic data apart."""
    return [_table(rows, synthetic) for synthetic, rows in by_data(view.depths)]


def depth_sentences(rows: Sequence[DepthRow]) -> list[str]:
    """Return on which sets depth is worth enough for claims about exits, and on which it is not."""
    limit = f"{100 * LEAST_DEPTH:g} points"
    deep = [row.label for row in rows if row.counts]
    flat = [row.label for row in rows if not row.counts]
    lines = []
    if deep:
        lines.append(
            f"The last layer is worth {limit} or more over the first on {len(deep)} of {len(rows)} sets: {', '.join(deep)}."
        )
    if flat:
        lines.append(
            f"It is worth less on {', '.join(flat)}: no claim about exits rests on {'it' if len(flat) == 1 else 'them'}."
        )
    return lines


def _table(rows: list[DepthRow], synthetic: bool) -> Table[DepthRow]:
    layers = sorted({layer for row in rows for layer in row.accuracy})
    values: dict[str, Callable[[DepthRow], object]] = {
        f"layer_{layer}": lambda row, layer=layer: row.accuracy.get(layer)  # type: ignore[misc]
        for layer in layers
    }
    values["counts"] = lambda row: COUNTS if row.counts else NO_CLAIM
    columns: list[Column[DepthRow]] = [
        Column("label", "Dataset", numeric=False),
        Column("heads", "Heads of", numeric=False),
        *(
            Column[DepthRow](f"layer_{layer}", str(layer), group="layer", form=percent, missing="no head there")
            for layer in layers
        ),
        Column("worth", "Last less first, points", form=points),
        Column("counts", f"{100 * LEAST_DEPTH:g} points or more", numeric=False),
        Column("n", "Test rows", form=lambda value: DASH if value is None else whole(value)),
    ]
    seeds = max(row.seeds for row in rows)
    notes = [
        *depth_sentences(rows),
        "Accuracy in % of the head after each layer of one model, on all test rows. Where depth is worth little, an early exit "
        "loses nothing whatever it does, so such a set cannot tell methods apart."
        + (f" Means over up to {seeds} seeds." if seeds > 1 else " One fit each."),
    ]
    csv = ("data", "dataset", "heads", *(f"layer_{layer}" for layer in layers), "worth", "counts", "n", "seeds")
    return Table(f"depth{file_tag(synthetic)}", TEXT + data_tag(synthetic), rows, columns, csv, notes, values=values)


TABLES = (RunTables("depth", "sets", 10, depth_tables),)
