"""Checks that must hold for every method: invariance, an unchanged state, and no test row seen before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.results.schema import Overlaps
from reports.analysis.cell_settings import grouped
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import View, by_data
from reports.notation.marks import data_tag, file_tag, together
from reports.notation.numbers import DASH, finite, percent, percent2, plain, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import DATASET, METHOD, run_table

_OVERLAPS = {
    "train_test": "Test rows also in train",
    "dev_test": "Test rows also in dev",
    "train_dev": "Dev rows also in train",
    "within_test": "Test rows that occur twice or more",
}
NOT_CHECKED = "not checked in this run"


@dataclass(frozen=True, kw_only=True)
class CheckRow(ResultRow):
    """The worst checks of a method on a dataset, over its rows; everything else is that of its first row."""

    points: int

    @property
    def verdict(self) -> str:
        checked = [self.rounds_agree is not None, self.batches_agree is not None, self.state_unchanged is not None]
        if set(self.marks) & set("†‡§¤"):
            return "fails"
        return "holds" if all(checked) else "holds, as far as checked"


_ENGINE: tuple[Column[CheckRow], ...] = (
    Column("engine_agrees", "Same label as without the engine %", missing="no engine of its own", form=percent2),
    Column("engine_exits", "Same exit as without the engine %", missing="no engine of its own", form=percent2),
    Column("engine_difference", "Largest difference of a probability", missing="no engine of its own", form=plain),
)


def checks_tables(view: View) -> list[Table[CheckRow]]:
    """Return one row per dataset and method; real and synthetic data apart."""
    engines = any(row.engine_agrees is not None for row in view.rows)
    columns: list[Column[CheckRow]] = [
        DATASET,
        METHOD,
        Column("points", "Rows", form=whole),
        Column("rounds_agree", "Same label in any order %", missing=NOT_CHECKED, form=percent2),
        Column("batches_agree", "Same label in any batch size %", missing=NOT_CHECKED, form=percent2),
        Column("state_unchanged", "Unchanged by testing", _unchanged, numeric=False, missing=NOT_CHECKED),
        Column("syncs", "Syncs a pass", missing="counted on CUDA only, if the run asks for it", form=whole),
        *(_ENGINE if engines else ()),
        Column("verdict", "Verdict", numeric=False),
    ]
    csv = ("data", "dataset", "method", *(column.key for column in columns[2:]), "marks")
    text = "Checks of every method, the worst of its rows"
    tables = []
    for synthetic, half in by_data(view.rows):
        rows = [_worst(same) for same in grouped(half, lambda row: (row.slug, row.method)).values()]
        tables.append(run_table("checks", text, synthetic, rows, columns, csv, split="dataset"))
    return tables


def _worst(same: Sequence[ResultRow]) -> CheckRow:
    unchanged = [row.state_unchanged for row in same if row.state_unchanged is not None]
    worst = {
        "rounds_agree": min((row.rounds_agree for row in same if finite(row.rounds_agree)), default=None),
        "batches_agree": min((row.batches_agree for row in same if finite(row.batches_agree)), default=None),
        "state_unchanged": all(unchanged) if unchanged else None,
        "syncs": max((row.syncs for row in same if row.syncs is not None), default=None),
        "engine_agrees": min((row.engine_agrees for row in same if row.engine_agrees is not None), default=None),
        "engine_exits": min((row.engine_exits for row in same if row.engine_exits is not None), default=None),
        "engine_difference": max(
            (row.engine_difference for row in same if row.engine_difference is not None), default=None
        ),
        "marks": together(*(row.marks for row in same)),
    }
    return CheckRow(**{**vars(same[0]), **worst}, points=len(same))


def _unchanged(row: CheckRow) -> str:
    return DASH if row.state_unchanged is None else "yes" if row.state_unchanged else "no"


@dataclass(frozen=True)
class OverlapRow:
    """Rows that the splits of one dataset share; ``test`` is the number of test samples."""

    label: str
    test: int
    counts: dict[str, int | None]


def overlap_tables(view: View) -> list[Table[OverlapRow]]:
    """Return one table with a row per dataset; none where overlaps were not counted."""
    rows = []
    for group in view.groups:
        for conditions, mine in grouped(view.of(group), lambda row: row.conditions).items():
            known = [row.overlaps for row in mine if row.overlaps is not None]
            counts = {name: max((getattr(one, name) for one in known), default=None) for name in Overlaps.model_fields}
            label = f"{group.label} {conditions}".strip()
            rows.append(OverlapRow(label, max(row.n for row in mine), counts))
    if all(count is None for row in rows for count in row.counts.values()):
        return []
    columns: list[Column[OverlapRow]] = [
        Column("label", "Dataset", numeric=False),
        Column("test", "Test samples", form=whole),
        *(_counts(name, label) for name, label in _OVERLAPS.items()),
    ]
    all_synthetic = all(group.synthetic for group in view.groups)
    tag = data_tag(True) if all_synthetic else ", synthetic data marked" if view.synthetic else ""
    note = (
        "Rows are the same if their token ids are, cut to the length that the model sees. In brackets: share of the test samples. "
        "Thresholds are tuned on dev and weights on train, so the rows that test shares with them were seen before."
    )
    values: dict[str, Callable[[OverlapRow], object]] = {
        f"overlap_{name}": lambda row, name=name: row.counts[name]  # type: ignore[misc]
        for name in _OVERLAPS
    }
    csv = ("dataset", "test", *values)
    values["dataset"] = lambda row: row.label
    name = f"overlaps{file_tag(view.synthetic)}"
    return [Table(name, "Rows that splits share" + tag, rows, columns, csv, [note], values=values)]


def _counts(name: str, label: str) -> Column[OverlapRow]:
    def show(row: OverlapRow) -> str:
        count = row.counts[name]
        if count is None or name == "train_dev" or not row.test:
            return whole(count)
        return f"{whole(count)} ({percent(count / row.test, 2)} %)"

    return Column(f"overlap_{name}", label, show, missing=NOT_CHECKED)


TABLES = (RunTables("checks", "checks", 10, checks_tables), RunTables("overlaps", "checks", 20, overlap_tables))
