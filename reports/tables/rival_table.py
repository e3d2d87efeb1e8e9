"""Every method against its rivals: paired tests, and whether it is faster and not worse."""

from __future__ import annotations

from reports.analysis.cell_settings import ROW_SETTING
from reports.analysis.time_ratios import FEWEST
from reports.analysis.verdicts.paired_test import MARGIN
from reports.analysis.verdicts.rival_tests import RATIO, Judgement, RivalTest
from reports.analysis.view import View, by_data
from reports.notation.numbers import DASH, finite, p_value, percent2, points, points2, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import DATASET, METHOD, NOISE, POINT, noise_notes, run_table, setting_columns

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
        Column("detectable", "Could have found, points", missing=unread, form=percent2),
        Column("p", "p exact", missing=unread, form=p_value),
        Column("p_holm", "p adjusted", form=p_value),
        Column("rival_speedup", "Speed-up over rival", _speedup, missing=untimed),
        NOISE,
        Column("lowest_difference", "accuracy, points", missing=unknown, group=worst, form=points2),
        Column("lowest_speedup", "speed-up", missing=unknown, group=worst, form=times),
        Column("passed", f"Faster and not worse by {_MARGIN}", _passed, numeric=False, missing=unknown),
    ]
    csv = (
        *("data", "dataset", "method", "point", *ROW_SETTING, "rival", "rival_point", "seeds", "pairs"),
        *("accuracy", "rival_accuracy", "difference", "difference_low", "difference_high", "wins", "losses", "p"),
        *("p_holm", "detectable", "rival_speedup", "speed_from", "noise_high", "lowest_difference", "lowest_speedup"),
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
        + "; adjusted (Holm): one family is one method against one rival, over all datasets and points of this table; without "
        f"rows in which too few answers differ for any outcome to be significant ({DASH}, Tarone).",
        "Could have found: the difference that this test, at its place in its family, finds with 80 % power. A p above 0.05 says "
        "only that no difference was found.",
        "Speed-up over rival: of the same rounds where the rival is the reference; “(ratio)”: the ratio of both speed-ups over "
        "the same reference, measured beside different passes, so that two such noises add.",
        f"Faster and not worse: with 95 % confidence each, less than {_MARGIN} of accuracy lost (Tango's paired bound) and a "
        "median speed-up above what the reference reaches over itself by chance"
        + (", for every seed separately (its time where it was timed); at worst is the worst seed." if several else ".")
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
    return f"not shown: {'both' if len(lost) == 2 else lost[0]}" if lost else "yes"


TABLES = (RunTables("rivals", "controls", 30, rival_tables, "Against rivals: {rows} comparisons"),)
