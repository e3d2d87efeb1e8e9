"""How well exits are predicted: against the sequential exit, methods beside controls; and what is answered before layer 1."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from reports.analysis.cell_settings import ROW_SETTING, grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.roles import CONSTANT, LENGTH, RANDOM
from reports.analysis.verdicts.answers_before import BeforeRow
from reports.analysis.verdicts.control_tests import ControlTest
from reports.analysis.verdicts.layer_answers import ACCURACY, AGREEMENT
from reports.analysis.verdicts.prediction_quality import Agreement, PredictorRow
from reports.analysis.verdicts.verdict_words import bounds_text
from reports.analysis.view import Group, View, of_group
from reports.notation.numbers import DASH, fixed, minus, percent, points
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable
from reports.tables.shared_columns import METHOD, POINT, dataset_table, setting_columns

HEADING = "How well exits are predicted"
_OVER = {RANDOM: "random", CONSTANT: "hull", LENGTH: "length"}


def predictor_table(view: View, group: Group) -> Table[PredictorRow] | None:
    """Return the table of one dataset; None where nothing is predicted."""
    rows = of_group(view.predictors, group)
    if not rows:
        return None
    unranked = "one of the two never changes, so nothing is ranked"
    uncounted = "this row has no exit table, or the run did not count them"
    untested = "no such comparison of this row (see the table of all comparisons)"
    judged = _judged(view, group)
    columns: list[Column[PredictorRow]] = [
        *(METHOD, POINT),
        *setting_columns(view),
        Column("mean_layers", "Mean layers", form=fixed),
        Column("accuracy", "Accuracy %", form=percent),
        Column("agreement_full", "Agreement %", missing=untested, form=percent),
        *(
            Column[PredictorRow](f"over_{name}", name, _shown(role, judged), missing=untested, group="Accuracy over:")
            for role, name in _OVER.items()
        ),
        Column("tau_b", "Kendall tau-b", missing=unranked, form=lambda value: minus(fixed(value))),
        Column("hit", "Hits %", form=percent),
        Column("early", "Too early %", form=percent),
        Column("late", "Too late %", form=percent),
        Column("unseen_tokens", "Unseen tokens %", missing=uncounted, form=percent),
    ]
    csv = (
        *("data", "dataset", "kind", "method", "point", *ROW_SETTING, "seeds", "n", "mean_layers", "accuracy"),
        *("agreement_full", *(f"over_{name}" for name in _OVER.values()), "compared_with"),
        *("tau_b", "hit", "within_one", "early", "late", "unseen_tokens", "cost_early", "cost_late"),
        *("accuracy_vs_sequential", "layers_vs_sequential", "marks"),
    )
    names = " or ".join(sorted({row.sequential_row.method for row in rows}))
    notes = [
        f"Predicted exits against the layer where {names} exits on the same weights and samples, at the same point. "
        "Hits: the same layer; too early costs accuracy, too late costs layers. Kendall's tau-b compares the ranks of pairs of "
        "samples and corrects for ties, which are frequent among exits; a predictor without information has about 0.",
        "Agreement: with the answer of full depth. Accuracy over random exits, the hull of constant depths, and length: points at "
        "equal mean layers, with 95 % interval; verdicts, and what each test could have found, are in the table "
        "of all comparisons.",
        "Verified exits apply a head where the prediction says so: their hits are those of the prediction, their accuracy and "
        "layers are those of the final answer.",
    ]
    values: dict[str, Callable[[PredictorRow], object]] = {
        name: lambda row, name=name: getattr(row.agreement, name)  # type: ignore[misc]
        for name in Agreement._fields
    }
    values["agreement_full"] = lambda row: _agreement(row, judged)
    values |= {
        f"over_{name}": lambda row, role=role: _difference(row, role, judged)  # type: ignore[misc]
        for role, name in _OVER.items()
    }
    return dataset_table(
        "predictor", HEADING, group, rows, columns, csv, notes, lowest=False, split="base", values=values
    )


Judged = dict[tuple[Hashable, ...], list[ControlTest]]


def _key(row: ResultRow) -> tuple[Hashable, ...]:
    return (row.method, row.point, *values_of(row, ROW_SETTING))


def _judged(view: View, group: Group) -> Judged:
    """Return a row -> its comparisons that could be made at equal layers."""
    made = [test for test in of_group(view.verdicts, group) if test.difference is not None and test.equal_layers]
    return grouped(made, _key)


def _test(row: PredictorRow, role: str, judged: Judged) -> ControlTest | None:
    tests = judged.get(_key(row), [])
    return next((test for test in tests if (test.control_role, test.measure) == (role, ACCURACY)), None)


def _difference(row: PredictorRow, role: str, judged: Judged) -> float | None:
    test = _test(row, role, judged)
    return test.difference if test else None


def _shown(role: str, judged: Judged) -> Callable[[PredictorRow], str]:
    def show(row: PredictorRow) -> str:
        test = _test(row, role, judged)
        return f"{points(test.difference)} ({bounds_text(test.low, test.high)})" if test else DASH

    return show


def _agreement(row: PredictorRow, judged: Judged) -> float | None:
    tests = judged.get(_key(row), [])
    return next((test.own_value for test in tests if test.measure == AGREEMENT), None)


BEFORE_HEADING = "Samples answered before layer 1"


def before_table(view: View, group: Group) -> Table[BeforeRow] | None:
    """Return what is answered before layer 1 on one dataset; None where no row can do so."""
    rows = of_group(view.before, group)
    if not rows:
        return None
    nothing_answered = "no sample was answered before layer 1"
    columns: list[Column[BeforeRow]] = [
        *(METHOD, POINT),
        *setting_columns(view),
        Column("share", "Answered before layer 1 %", form=percent),
        Column("accuracy_before", "Accuracy there %", missing=nothing_answered, form=percent),
        Column("accuracy_full", "Full depth there %", missing=nothing_answered, form=percent),
        Column(
            "gain",
            "Change over all samples, points (95 %)",
            lambda row: (
                DASH if row.gain is None else f"{points(row.gain)} ({bounds_text(row.gain_low, row.gain_high)})"
            ),
            missing="fewer than two test rows, or seeds with other rows",
        ),
        Column("mean_layers", "Mean layers", form=fixed),
        Column("accuracy", "Accuracy %", form=percent),
    ]
    csv = (
        *("data", "dataset", "kind", "method", "point", *ROW_SETTING, "seeds", "n", "share", "accuracy_before"),
        *("accuracy_full", "gain", "gain_low", "gain_high", "mean_layers", "accuracy", "marks"),
    )
    notes = [
        "These samples run no layer, no head and no embedding; they exit at layer 0 in all means. Full depth there: the last layer "
        "of the same weights on the same samples. Change over all samples: what these answers add to the accuracy of the whole set "
        "where they replace those of full depth."
    ]
    return dataset_table("before", BEFORE_HEADING, group, rows, columns, csv, notes)


TABLES = (
    DatasetTable("predictor", 20, HEADING, predictor_table, "confusion"),
    DatasetTable("before", 25, BEFORE_HEADING, before_table),
)
