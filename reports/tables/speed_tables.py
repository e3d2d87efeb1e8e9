"""Each speed-up in its parts: the factors from layers to wall time, and ratios with the shares of a pass."""

from __future__ import annotations

from collections.abc import Callable

from reports.analysis.factor_losses import LOSSES, in_order, largest_loss, ratio_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import Group, View
from reports.notation.numbers import percent, times
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable
from reports.tables.shared_columns import IDENTITY, NO_REFERENCE, NOISE, dataset_table, identity_columns, noise_notes

RATIOS = "Ratios of layers, FLOPs and time, and shares of a pass"
NO_FACTORS = "not recorded: an older result, no reference, or a method without blocks that count"


def factor_table(view: View, group: Group) -> Table[ResultRow] | None:
    """Return the factors from layers to wall time of every row but the reference; None where no row has them."""
    rows = [row for row in view.of(group) if not row.is_reference]
    names = in_order([row.factors for row in rows if row.factors is not None])
    if not names:
        return None

    def value(name: str) -> Callable[[ResultRow], float | None]:
        return lambda row: ratio_of(row.factors, name)

    def factor(name: str) -> Column[ResultRow]:
        of_row, why = value(name), f"the method has no such step, or {NO_FACTORS}"
        return Column(f"factor {name}", name, lambda row: times(of_row(row)), missing=why)

    values: dict[str, Callable[[ResultRow], object]] = {f"factor {name}": value(name) for name in names}
    values["measured"] = lambda row: row.factors.measured if row.factors else None
    values["loss"] = _loss
    columns = [
        *identity_columns(view),
        *(factor(name) for name in names),
        Column("measured", "= speed-up", lambda row: times(values["measured"](row)), missing=NO_FACTORS),
        NOISE,
        Column("loss", "Largest loss", _loss, numeric=False, missing=NO_FACTORS),
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

    def value(name: str) -> Callable[[ResultRow], float | None]:
        return lambda row: row.phases.get(name)

    def phase(name: str) -> Column[ResultRow]:
        of_row, why = value(name), "the method does not time this part"
        show = lambda row: percent(of_row(row))  # noqa: E731
        return Column(f"phase_{name}", f"{name} %", show, missing=why, group="Share of pass:")

    columns = [
        *identity_columns(view),
        Column("ratio_layers", "Layers ratio", lambda row: times(row.ratio_layers), missing=NO_REFERENCE),
        Column("ratio_linear", "FLOPs ratio linear", lambda row: times(row.ratio_linear), missing=NO_REFERENCE),
        Column("ratio_full", "FLOPs ratio full", lambda row: times(row.ratio_full), missing=NO_REFERENCE),
        Column("speedup", "Speed-up", lambda row: times(row.speedup), missing=NO_REFERENCE),
        NOISE,
        Column("kept", "Kept %", lambda row: percent(row.kept, 0), missing=NO_REFERENCE),
        *(phase(name) for name in names),
    ]
    note = (
        "Kept: speed-up over linear FLOPs ratio; the rest to 100 % is spent on heads, sorting, copies, smaller batches and "
        "launch costs."
    )
    values = {f"phase_{name}": value(name) for name in names}
    csv = (*IDENTITY, "ratio_layers", "ratio_linear", "ratio_full", "speedup", "noise_high", "kept", *values)
    return dataset_table("anatomy", RATIOS, group, rows, columns, csv, [note], values=values)


TABLES = (
    DatasetTable("waterfall", 10, "Parts of the speed-up: from layers to wall time", factor_table, "waterfall"),
    DatasetTable("anatomy", 40, RATIOS, ratio_table),
)
