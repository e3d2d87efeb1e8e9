"""Paired tests: methods that predict exits against their controls, and every method against its rivals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from reports.analysis.cell_settings import ROW_SETTING, grouped
from reports.analysis.time_ratios import FEWEST
from reports.analysis.verdicts.control_tests import BEATS, DEARER, NO_BETTER, UNKNOWN, WORSE, ControlTest
from reports.analysis.verdicts.rival_tests import MARGIN, RATIO, Judgement, RivalTest
from reports.analysis.view import View, by_data
from reports.notation.marks import marked, together
from reports.notation.numbers import DASH, finite, fixed, p_value, points, points2, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import DATASET, METHOD, NOISE, POINT, noise_notes, run_table, setting_columns

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
        *(DATASET, METHOD, POINT),
        *setting_columns(view),
        Column("verdict", "Verdict", lambda row: row.verdict.rstrip(","), numeric=False),
        Column("control", "Control", _control, numeric=False),
        Column("difference", "Accuracy difference, points", missing=missing, form=points2),
        Column("wins", "Won : lost", lambda row: f"{row.wins} : {row.losses}" if row.pairs else DASH, missing=missing),
        Column("p", "p exact", missing=missing, form=p_value),
        Column("p_holm", "p adjusted", missing=missing, form=p_value),
        Column("layer_ratio", "Layers vs control", form=times),
        Column("mean_heads", "Heads a sample", _heads),
        Column("speed_ratio", "Samples/s vs control", form=times),
        NOISE,
    ]
    csv = (
        *("data", "dataset", "method", "point", *ROW_SETTING, "control", "control_point", "verdict", "seeds", "pairs"),
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


def _heads(row: ControlTest) -> str:
    return f"{fixed(row.mean_heads)} vs {fixed(row.control_row.mean_heads)}"


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
    why = "not measured at the same point, or not a control of this method"
    verified = "applies to verified exits only"
    text = "Verdicts against the controls, counted over operating points"
    tables = []
    for synthetic, tests in by_data(view.verdicts):
        rows = [_tally(same) for same in grouped(tests, lambda test: (test.label, test.method)).values()]
        controls = sorted({test.control for test in tests})
        columns: list[Column[TallyRow]] = [
            Column("dataset", "Dataset", numeric=False),
            Column("method", "Method", lambda row: marked(row.method, row.marks), numeric=False),
            *(
                Column[TallyRow](name, f"Against {name}", numeric=False, missing=why, form=_or_dash)
                for name in controls
            ),
            Column("equal", _KEEPS_UP, numeric=False, missing=verified, form=_or_dash),
        ]
        values = {name: lambda row, name=name: row.against.get(name) for name in controls}
        csv = ("data", "dataset", "method", *controls, "equal")
        tables.append(run_table("controls-tally", text, synthetic, rows, columns, csv, values=values))
    return tables


_KEEPS_UP = "Keeps up: at most 0.2 points less, 5 % more layers"


def _or_dash(value: str | None) -> str:
    return value or DASH


def _tally(same: list[ControlTest]) -> TallyRow:
    against = {}
    for control in {test.control for test in same}:
        counts = Counter(test.verdict for test in same if test.control == control)
        against[control] = ", ".join(f"{text} {counts[word]}" for word, text in _SHORT.items() if word in counts)
    equal = f"{sum(test.close for test in same)} of {len(same)}" if all(test.verified for test in same) else None
    first, marks = same[0], together(*(test.marks for test in same))
    return TallyRow(first.data, first.label, first.dataset, first.method, marks, against, equal)


_MARGIN = f"{100 * MARGIN:g} points"


def rival_tables(view: View) -> list[Table[RivalTest]]:
    """Return every comparison; real and synthetic data apart."""
    unread = "per-sample rows are missing or share no seed, or the rival was not measured at this point and setting"
    untimed = "the two have no common reference, or the rival was not measured at this point and setting"
    unknown = f"per-sample rows or single passes are missing, or fewer than {FEWEST} A/A pairs were recorded"
    worst = "At worst:"
    columns: list[Column[RivalTest]] = [
        *(DATASET, METHOD, POINT),
        *setting_columns(view),
        Column("rival", "Rival", _rival, numeric=False),
        Column("pairs", "Test rows", lambda row: whole(row.pairs or None), missing=unread),
        Column("difference", "Accuracy difference, points (95 % interval)", _difference, missing=unread),
        Column("p", "p exact", missing=unread, form=p_value),
        Column("p_holm", "p adjusted", missing=unread, form=p_value),
        Column("rival_speedup", "Speed-up over rival", _speedup, missing=untimed),
        NOISE,
        Column("lowest_difference", "accuracy, points", missing=unknown, group=worst, form=points2),
        Column("lowest_speedup", "speed-up", missing=unknown, group=worst, form=times),
        Column("passed", f"Faster and not worse by {_MARGIN}", _passed, numeric=False, missing=unknown),
    ]
    csv = (
        *("data", "dataset", "method", "point", *ROW_SETTING, "rival", "rival_point", "seeds", "pairs"),
        *("accuracy", "rival_accuracy", "difference", "difference_low", "difference_high", "wins", "losses", "p"),
        *("p_holm", "rival_speedup", "speed_from", "noise_high", "lowest_difference", "lowest_speedup"),
        *("not_worse", "faster", "passed", "marks"),
    )
    several = any(test.seeds > 1 for test in view.rivals)
    notes = [
        "The rival is taken at the same point, or at its base (speed=0.5 of speed=0.5/once); a budget is compared with the speed "
        "nearest in mean layers; a method without either with the rival's most accurate point. Difference: method less rival on "
        "the same test rows, interval by paired bootstrap"
        + (" of rows with all their seeds" if several else "")
        + "; p: exact McNemar test"
        + (", over seeds a sign test on each row's wins minus losses" if several else "")
        + "; adjusted (Holm): one family is one method against one rival, over all datasets and points of this table.",
        "Speed-up over rival: of the same rounds where the rival is the reference; “(ratio)”: the ratio of both speed-ups over "
        "the same reference, measured beside different passes, so that two such noises add.",
        f"Faster and not worse: with 95 % confidence each, less than {_MARGIN} of accuracy lost (Tango's paired bound) and a "
        "median speed-up above what the reference reaches over itself by chance"
        + (", for every seed separately; at worst is the worst seed." if several else ".")
        + f" With few test rows it cannot pass: without any row that differs it takes about {whole(2.7 / MARGIN)}.",
    ]
    text = "Against rivals: p adjusted (Holm) over the datasets and points of one method and one rival"
    values = {name: lambda row, name=name: getattr(row.judgement, name) for name in Judgement._fields}
    return [
        run_table(
            "rivals", text, synthetic, tests, columns, csv, [*notes, *noise_notes(tests)], lowest=False, values=values
        )
        for synthetic, tests in by_data(view.rivals)
    ]


def _rival(row: RivalTest) -> str:
    if row.rival_point is None:
        return f"{row.rival}, no such point" + (f" under {row.conditions}" if row.conditions else "")
    return row.rival if row.rival_point in (row.point, "full") else f"{row.rival} at {row.rival_point}"


def _difference(row: RivalTest) -> str:
    if not finite(row.difference):
        return DASH
    low, high = row.difference_low, row.difference_high
    # An en dash would be read as a minus sign.
    bounds = f"{points(low, 2)} to {points(high, 2)}" if finite(low) and finite(high) else DASH
    return f"{points(row.difference, 2)} ({bounds})"


def _speedup(row: RivalTest) -> str:
    return times(row.rival_speedup) + (" (ratio)" if row.speed_from == RATIO else "")


def _passed(row: RivalTest) -> str:
    if row.passed is None:
        return DASH
    lost = [name for name, kept in (("accuracy", row.judgement.not_worse), ("speed", row.judgement.faster)) if not kept]
    return f"no: {'both' if len(lost) == 2 else lost[0]}" if lost else "yes"


TABLES = (
    RunTables("tally", "controls", 10, tally_tables),
    RunTables("controls", "controls", 20, controls_tables, "All {rows} comparisons"),
    RunTables("rivals", "controls", 30, rival_tables, "Against rivals: {rows} comparisons"),
)
