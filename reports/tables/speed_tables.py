"""Each speed-up in its parts: the factors from layers to wall time, and ratios with the shares of a pass."""

from __future__ import annotations

from collections.abc import Callable

from reports.analysis.result_rows import ResultRow
from reports.analysis.time_ratios import LOSSES, in_order, largest_loss, ratio_of
from reports.analysis.view import Group, View
from reports.notation.numbers import percent, times
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable
from reports.tables.shared_columns import (
    IDENTITY,
    NO_REFERENCE,
    NOISE,
    dataset_table,
    identity_columns,
    noise_notes,
    why_no_speedup,
)

RATIOS = "Ratios of layers, FLOPs and time, and shares of a pass"
NO_FACTORS = "not recorded: an older result, not timed, no reference, or a method without blocks that count"


def factor_table(view: View, group: Group) -> Table[ResultRow] | None:
    """Return the factors from layers to wall time of every row but the reference; None where no row has them."""
    rows = [row for row in view.of(group) if not row.is_reference]
    names = in_order([row.factors for row in rows if row.factors is not None])
    if not names:
        return None

    values: dict[str, Callable[[ResultRow], object]] = {
        f"factor {name}": lambda row, name=name: ratio_of(row.factors, name)  # type: ignore[misc]
        for name in names
    }
    values["measured"] = lambda row: row.factors.measured if row.factors else None
    values["loss"] = _loss
    why = f"the method has no such step, or {NO_FACTORS}"
    columns = [
        *identity_columns(view),
        *(Column[ResultRow](f"factor {name}", name, missing=why, form=times) for name in names),
        Column("measured", "= speed-up", missing=NO_FACTORS, form=times),
        NOISE,
        Column("loss", "Largest loss", numeric=False, missing=NO_FACTORS),
    ]
    several = max(row.seeds for row in rows) > 1
    meanings = [f"{name}: {LOSSES[name]}" for name in names if name in LOSSES]
    notes = [
        "The factors of a row multiply to its speed-up in the round nearest to the median"
        + (", geometric means over seeds; explanations are those of one seed." if several else "."),
        f"A factor below 1 is a loss. {'; '.join(meanings)}.",
        *noise_notes(rows),
    ]
    csv = (*IDENTITY, *(f"factor {name}" for name in names), "measured", "speedup", "noise_high", "loss", "marks")
    return dataset_table("waterfall", "From layers to wall time", group, rows, columns, csv, notes, values=values)


def _loss(row: ResultRow) -> str:
    if row.factors is None:
        return "—"
    loss = largest_loss(row.factors)
    return f"{loss.name} {times(loss.ratio)}: {loss.what}" if loss else "none"


def ratio_table(view: View, group: Group) -> Table[ResultRow]:
    """Return the ratios of layers, FLOPs and wall time to the reference, and the shares of a pass."""
    rows = [row for row in view.of(group) if not row.is_reference]
    names = sorted({name for row in rows for name in row.phases})

    values = {f"phase_{name}": lambda row, name=name: row.phases.get(name) for name in names}
    untimed, above = "the method does not time this part, or was not timed", "Share of pass:"
    columns = [
        *identity_columns(view),
        Column("ratio_layers", "Layers ratio", missing=NO_REFERENCE, form=times),
        Column("ratio_linear", "FLOPs ratio linear", missing=NO_REFERENCE, form=times),
        Column("ratio_full", "FLOPs ratio full", missing=NO_REFERENCE, form=times),
        Column("speedup", "Speed-up", missing=why_no_speedup(rows), form=times),
        NOISE,
        Column("kept", "Kept %", missing=why_no_speedup(rows), form=lambda value: percent(value, 0)),
        *(
            Column[ResultRow](f"phase_{name}", f"{name} %", missing=untimed, group=above, form=percent)
            for name in names
        ),
    ]
    note = (
        "Kept: speed-up over linear FLOPs ratio; the rest to 100 % is spent on heads, sorting, copies, smaller batches and "
        "launch costs."
    )
    csv = (*IDENTITY, "ratio_layers", "ratio_linear", "ratio_full", "speedup", "noise_high", "kept", *values)
    return dataset_table("anatomy", RATIOS, group, rows, columns, csv, [note], values=values)


TABLES = (
    DatasetTable("waterfall", 10, "Parts of the speed-up: from layers to wall time", factor_table, "waterfall"),
    DatasetTable("anatomy", 40, RATIOS, ratio_table),
)
