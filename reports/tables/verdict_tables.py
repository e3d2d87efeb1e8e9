"""Does prediction beat its controls? Pooled endpoints, what a perfect predictor could reach, and every single comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from reports.analysis.cell_settings import ROW_SETTING
from reports.analysis.verdicts.control_tests import UNKNOWN, ControlTest
from reports.analysis.verdicts.layer_answers import Reachable
from reports.analysis.verdicts.pooled_verdicts import PRIMARY_TEXT, PooledTest
from reports.analysis.verdicts.verdict_words import LEAST_DEPTH, MARGIN_TEXT, WITH_POWER, bounds_text
from reports.analysis.view import View, by_data
from reports.notation.marks import data_tag, file_tag, footnotes, marked
from reports.notation.numbers import DASH, finite, fixed, p_value, percent, points, times
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import DATASET, METHOD, POINT, run_table, setting_columns

_COULD = f"Could have found, points ({WITH_POWER})"
_INTERVAL = "Difference, points (95 % interval)"
_WORDS = (
    f"Verdict: “no difference found” says only that this test found none; it could have found the stated difference {WITH_POWER}. "
    f"“Keeps up”: with 95 % confidence less than {MARGIN_TEXT} lost, at no more layers (5 % tolerance); against the sequential "
    "exit the stated number is the margin that could have been shown if both were equally good."
)


def _difference(row: ControlTest | PooledTest) -> str:
    if not finite(row.difference):
        return DASH
    return f"{points(row.difference)} ({bounds_text(row.low, row.high)})"


def pooled_tables(view: View) -> list[Table[PooledTest]]:
    """Return the endpoints over all sets and seeds; real and synthetic data apart."""
    tables = []
    for synthetic in (False, True):
        rows = [row for row in view.pooled if row.synthetic == synthetic]
        if not rows:
            continue
        names = [(row.method, row.point, row.control, row.measure) for row in rows]
        settings = len(set(names)) < len(names)  # one endpoint was measured in several ways
        columns: list[Column[PooledTest]] = [
            Column("method", "Method", lambda row: marked(row.method, row.marks), numeric=False),
            Column("point", "Point", numeric=False),
            *([Column[PooledTest]("setting", "Setting", _setting, numeric=False)] if settings else []),
            Column("endpoint", "Endpoint", _endpoint, numeric=False),
            Column("sets", "Sets", lambda row: _sets(row)),
            Column("mean_layers", "Mean layers", form=fixed),
            Column("difference", _INTERVAL, _difference),
            Column("detectable", _COULD, form=partial(percent, digits=1)),
            Column("p_adjusted", "p adjusted", form=p_value),
            Column("verdict", "Verdict", numeric=False),
        ]
        csv = (
            *("data", "method", "point", "endpoint", "measure", "control", "sets_count", "sets_all", "seeds_fewest"),
            *(
                "pairs",
                "mean_layers",
                "layer_ratio",
                "own_value",
                "control_value",
                "difference",
                "low",
                "high",
                "worst",
            ),
            *("se", "p", "p_adjusted", "detectable", "verdict", "marks"),
        )
        values: dict[str, Callable[[PooledTest], object]] = {
            "sets_count": lambda row: len(row.sets),
            "sets_all": lambda row: len(row.sets) + len(row.missing),
            "seeds_fewest": lambda row: row.seeds[0],
        }
        notes = [
            f"Primary endpoint, stated beforehand: {PRIMARY_TEXT}. All others are secondary.",
            "Every set weighs the same; a test row counts once, with the mean over its seeds; intervals and p by stratified "
            "bootstrap of test rows, so that they cover other rows of these sets for these fits, not other sets or seeds. "
            "p adjusted (Holm): over the primary endpoints of all methods, or over the secondary ones of one method. Random exits "
            "and the hull are exact expectations from the answers of every head; the hull mixes two depths, chosen on dev, to "
            "exactly the mean layers of the row.",
            _WORDS,
            *_missing(rows),
            *footnotes(rows, lowest=False),
        ]
        text = "Verdicts on predicted exits, over all sets and seeds"
        name = f"verdicts{file_tag(synthetic)}"
        tables.append(Table(name, text + data_tag(synthetic), rows, columns, csv, notes, "method", values))
    return tables


def _endpoint(row: PooledTest) -> str:
    return f"{row.endpoint}: {row.measure} against {row.control}"


def _setting(row: PooledTest) -> str:
    return " ".join(str(value) for value in row.setting if value not in ("", 0, None))


def _sets(row: PooledTest) -> str:
    return f"{len(row.sets)} of {len(row.sets) + len(row.missing)}"


def _missing(rows: list[PooledTest]) -> list[str]:
    """Return a note on sets that could not be pooled, by reason."""
    why: dict[str, set[str]] = {}
    for row in rows:
        for label, reason in row.missing.items():
            why.setdefault(reason, set()).add(f"{row.method} on {label}")
    return [f"Not pooled, because {reason}: {', '.join(sorted(names))}." for reason, names in why.items()]


def bounds_tables(view: View) -> list[Table[Reachable]]:
    """Return what a perfect predictor could reach; real and synthetic data apart."""
    agreement, right = "First agreement:", "First correct:"
    columns: list[Column[Reachable]] = [
        Column("dataset", "Dataset", lambda row: marked(row.label, row.marks), numeric=False),
        Column("full", "Full depth %", form=percent),
        Column("depth_worth", "over the first head, points", form=points),
        Column("full", "accuracy %", group=agreement, form=percent),
        Column("agreeing_layers", "layers", group=agreement, form=fixed),
        Column("any_right", "accuracy %", group=right, form=percent),
        Column("right_layers", "layers", group=right, form=fixed),
    ]
    csv = ("data", "dataset", "oracle", "depth", "seeds", "n", "full", "first", "depth_worth", "agreeing_layers")
    notes = [
        "First agreement: every sample exits at the first layer that agrees with full depth: the fewest layers at unchanged "
        "answers. First correct: at the first layer that is right, else at full depth: no predictor of exits can be more accurate. "
        "Both look ahead, and the second also at the labels; they are bounds, not methods.",
        f"Where all layers together are worth less than {100 * LEAST_DEPTH:g} points over the first head, a set says nothing about "
        "exits.",
    ]
    tables = []
    for synthetic in ("real", "synthetic"):
        rows = [row for row in view.bounds if row.data == synthetic]
        if rows:
            tag = synthetic == "synthetic"
            name, text = f"bounds{file_tag(tag)}", "What a perfect predictor of exits could reach" + data_tag(tag)
            shown = [*notes, *footnotes(rows, lowest=False)]
            tables.append(Table(name, text, rows, columns, (*csv, "any_right", "right_layers"), shown))
    return tables


def controls_tables(view: View) -> list[Table[ControlTest]]:
    """Return every comparison; real and synthetic data apart."""
    missing = "see the reasons below"
    columns: list[Column[ControlTest]] = [
        *(DATASET, METHOD, POINT),
        *setting_columns(view),
        Column("control", "Against", numeric=False),
        Column("measure", "Measure", numeric=False),
        Column("mean_layers", "Mean layers", form=fixed),
        Column("layer_ratio", "over the control's", form=times),
        Column("own_value", "Accuracy or agreement %", missing=missing, form=percent),
        Column("difference", _INTERVAL, _difference, missing=missing),
        Column("detectable", _COULD, form=partial(percent, digits=1)),
        Column("p_holm", "p adjusted", form=p_value),
        Column("verdict", "Verdict", numeric=False),
    ]
    csv = (
        *("data", "dataset", "method", "point", *ROW_SETTING, "control", "measure", "verdict", "seeds", "pairs"),
        *("own_value", "control_value", "difference", "low", "high", "worst", "wins", "losses", "p", "p_holm"),
        *("detectable", "mean_layers", "control_layers", "layer_ratio", "mean_heads", "speed_ratio", "reason", "marks"),
    )
    text = "Every comparison of predicted exits with a control"
    tables = []
    for synthetic, tests in by_data(view.verdicts):
        reasons: dict[tuple[str, str, str], ControlTest] = {}
        for test in tests:
            if test.verdict == UNKNOWN:
                reasons.setdefault((test.method, test.control, test.reason), test)
        notes = [
            "Random exits and the hull of constant depths: exact expectations at the row's own mean layers, tested by a t-test on "
            "each test row's difference. Measured controls: exact McNemar test"
            + (", over seeds a sign test on each row's wins minus losses" if max(t.seeds for t in tests) > 1 else "")
            + ", only where mean layers are equal within 5 %. p adjusted: over points and controls of one method on one dataset by "
            f"one measure (Holm; {DASH}: too few rows differ for any outcome to be significant, Tarone). Against the sequential "
            "exit the bound is Tango's, of the worst seed.",
            _WORDS.partition("; against the sequential")[0] + ".",
            *(f"Not computed, {method} against {control}: {reason}." for method, control, reason in reasons),
        ]
        tables.append(run_table("controls", text, synthetic, tests, columns, csv, notes, lowest=False))
    return tables


TABLES = (
    RunTables("verdicts", "controls", 10, pooled_tables),
    RunTables("bounds", "controls", 15, bounds_tables),
    RunTables("controls", "controls", 20, controls_tables, "All {rows} comparisons"),
)
