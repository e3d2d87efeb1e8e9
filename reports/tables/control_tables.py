"""Methods that predict exits against their controls: verdicts counted, and every comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from reports.analysis.cell_settings import SETTING, grouped
from reports.analysis.control_tests import BEATS, DEARER, NO_BETTER, UNKNOWN, WORSE, ControlTest
from reports.analysis.view import View, by_data
from reports.notation.marks import marked, together
from reports.notation.numbers import DASH, fixed, p_value, points, times
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import DATASET, NOISE, noise_notes, run_table, setting_columns

_SHORT = {
    BEATS: "beats",
    DEARER: "beats with more layers",
    NO_BETTER: "no better",
    WORSE: "worse",
    UNKNOWN: "not comparable",
}


def controls_tables(view: View) -> list[Table[ControlTest]]:
    """Return every comparison; real and synthetic data apart."""
    missing = "per-sample rows are missing or share no seed"
    columns: list[Column[ControlTest]] = [
        DATASET,
        Column("method", "Method", lambda row: marked(row.method, row.marks), numeric=False),
        Column("point", "Point", lambda row: row.point, numeric=False),
        *setting_columns(view),
        Column("verdict", "Verdict", lambda row: row.verdict.rstrip(","), numeric=False),
        Column("control", "Control", _control, numeric=False),
        Column("difference", "Accuracy difference, points", lambda row: points(row.difference, 2), missing=missing),
        Column("wins", "Won : lost", lambda row: f"{row.wins} : {row.losses}" if row.pairs else DASH, missing=missing),
        Column("p", "p exact", lambda row: p_value(row.p), missing=missing),
        Column("p_holm", "p adjusted", lambda row: p_value(row.p_holm), missing=missing),
        Column("layer_ratio", "Layers vs control", lambda row: times(row.layer_ratio)),
        Column(
            "mean_heads",
            "Heads a sample",
            lambda row: f"{fixed(row.mean_heads)} vs {fixed(row.control_row.mean_heads)}",
        ),
        Column("speed_ratio", "Samples/s vs control", lambda row: times(row.speed_ratio)),
        NOISE,
    ]
    csv = (
        *("data", "dataset", "method", "point", *SETTING, "control", "control_point", "verdict", "seeds", "pairs"),
        *("accuracy", "control_accuracy", "difference", "wins", "losses", "p", "p_holm"),
        *("mean_layers", "control_layers", "layer_ratio", "mean_heads", "control_heads", "speed_ratio", "noise_high"),
        *("close", "marks"),
    )
    values: dict[str, Callable[[ControlTest], object]] = {
        "control_accuracy": lambda row: row.control_row.accuracy,
        "control_layers": lambda row: row.control_row.mean_layers,
        "control_heads": lambda row: row.control_row.mean_heads,
    }
    text = "Does prediction beat its controls?"
    several = any(test.seeds > 1 for test in view.verdicts)
    note = (
        "Won : lost counts test samples that only the method, or only the control, classifies correctly; exact McNemar test"
        + (", over several seeds a sign test on each sample's wins minus losses" if several else "")
        + ". Verdicts use p adjusted for all comparisons of the dataset (Holm, 5 %)."
    )
    return [
        run_table(
            "controls", text, synthetic, tests, columns, csv, [note, *noise_notes(tests)], lowest=False, values=values
        )
        for synthetic, tests in by_data(view.verdicts)
    ]


def _control(row: ControlTest) -> str:
    return row.control if row.control_point == row.point else f"{row.control} at {row.control_point}"


@dataclass(frozen=True)
class TallyRow:
    """Verdicts of one method on one dataset: control -> counts in words; ``equal``: how often verified exits keep up."""

    data: str
    label: str
    dataset: str
    method: str
    marks: str
    against: dict[str, str]
    equal: str | None


def tally_tables(view: View) -> list[Table[TallyRow]]:
    """Return how often each predicting method beats each control; real and synthetic data apart."""
    tables = []
    for synthetic, tests in by_data(view.verdicts):
        rows = [_tally(same) for same in grouped(tests, lambda test: (test.label, test.method)).values()]
        controls = sorted({test.control for test in tests})
        columns: list[Column[TallyRow]] = [
            Column("dataset", "Dataset", lambda row: row.dataset, numeric=False),
            Column("method", "Method", lambda row: marked(row.method, row.marks), numeric=False),
            *(_against(control) for control in controls),
            Column(
                "equal",
                "Keeps up: at most 0.2 points less, 5 % more layers",
                lambda row: row.equal or DASH,
                numeric=False,
                missing="applies to verified exits only",
            ),
        ]
        values = {name: lambda row, name=name: row.against.get(name) for name in controls}
        text = "Verdicts against the controls, counted over operating points"
        tables.append(
            run_table(
                "controls-tally",
                text,
                synthetic,
                rows,
                columns,
                ("data", "dataset", "method", *controls, "equal"),
                values=values,
            )
        )
    return tables


def _tally(same: list[ControlTest]) -> TallyRow:
    against = {}
    for control in {test.control for test in same}:
        counts = Counter(test.verdict for test in same if test.control == control)
        against[control] = ", ".join(f"{text} {counts[word]}" for word, text in _SHORT.items() if word in counts)
    first, verified = same[0], all(test.verified for test in same)
    equal = f"{sum(test.close for test in same)} of {len(same)}" if verified else None
    marks = together(*(test.marks for test in same))
    return TallyRow(first.data, first.label, first.dataset, first.method, marks, against, equal)


def _against(control: str) -> Column[TallyRow]:
    why = "not measured at the same point, or not a control of this method"
    return Column(control, f"Against {control}", lambda row: row.against.get(control, DASH), numeric=False, missing=why)


TABLES = (
    RunTables("tally", "controls", 10, tally_tables),
    RunTables("controls", "controls", 20, controls_tables, "All {rows} comparisons"),
)
