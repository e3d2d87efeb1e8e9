"""Pairs of methods at equal cost, over all sets and seeds."""

from __future__ import annotations

from collections.abc import Callable

from reports.analysis.verdicts.equal_cost_tests import EqualCostTest
from reports.analysis.verdicts.paired_test import FEWEST
from reports.analysis.verdicts.verdict_words import WITH_POWER, bounds_text
from reports.analysis.view import View, by_data
from reports.notation.marks import data_tag, file_tag, footnotes, marked
from reports.notation.numbers import DASH, finite, p_value, percent, points2, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables

TEXT = "Against rivals at equal cost, over all sets and seeds"
_AT = {"flops": "half of the FLOPs", "time": "half of the time"}


def equal_cost_tables(view: View) -> list[Table[EqualCostTest]]:
    """Return all pairs; real and synthetic data apart."""
    tables = []
    for synthetic, rows in by_data(view.equal_cost):
        pools = len({row.setting for row in rows}) > 1
        columns: list[Column[EqualCostTest]] = [
            Column("method", "Method", lambda row: marked(row.name, row.marks), numeric=False),
            Column("rival", "Rival", numeric=False),
            Column("cost", "At", lambda row: _AT[row.cost], numeric=False),
            *([Column[EqualCostTest]("setting", "Setting", _setting, numeric=False)] if pools else []),
            Column("sets_count", "Sets", lambda row: f"{len(row.sets)} of {len(row.sets) + len(row.missing)}"),
            Column("difference", "Accuracy difference, points (95 % interval)", _difference),
            Column("p_adjusted", "p adjusted", form=p_value, missing=f"fewer than {FEWEST} test rows differ"),
            Column("detectable", f"Could have found, points ({WITH_POWER})", form=lambda value: percent(value, 2)),
            Column("verdict", "Verdict", numeric=False),
            Column("ahead", "Ahead on", numeric=False, form=_names),
            Column("behind", "Behind on", numeric=False, form=_names),
            Column("training", "Training over rival's", form=times, missing="training FLOPs were not counted"),
        ]
        seeds = [count for row in rows for count in row.seeds]
        over = (
            f"{min(seeds)} seed{'s' * (max(seeds) > 1)}"
            if min(seeds) == max(seeds)
            else f"{min(seeds)} to {max(seeds)} seeds"
        )
        notes = [
            "Difference: accuracy that half of the reference's cost buys, method less rival, on the same test rows; a budget "
            "between two points buys a mix of both, as in the tables of ranks. Mean over sets, which weigh the same; a test row "
            f"counts once, with the mean over its {over}; interval and p by stratified bootstrap of test rows: other rows of "
            "these sets for these fits, not other sets or seeds. p adjusted: Holm over all pairs at this cost.",
            "Ahead on, behind on: single sets, t-test of the test rows' differences, adjusted (Holm) over the sets of the pair. A "
            "set that is not named shows no difference; that is not the same as equal.",
            "Training over rival's: FLOPs of all layer passes, forward and backward, mean over sets.",
            *_missing(rows),
            *footnotes(rows, lowest=False),
        ]
        csv = (
            *(
                "data",
                "cost",
                "method",
                "variant",
                "rival",
                "sets_count",
                "seeds_fewest",
                "pairs",
                "difference",
                "low",
                "high",
            ),
            *("se", "p", "p_adjusted", "detectable", "verdict", "ahead_on", "behind_on", "training", "marks"),
        )
        values: dict[str, Callable[[EqualCostTest], object]] = {
            "sets_count": lambda row: len(row.sets),
            "seeds_fewest": lambda row: row.seeds[0],
            "ahead_on": lambda row: " ".join(row.ahead),
            "behind_on": lambda row: " ".join(row.behind),
        }
        name = f"equal-cost{file_tag(synthetic)}"
        tables.append(Table(name, TEXT + data_tag(synthetic), rows, columns, csv, notes, "cost", values))
    return tables


def _difference(row: EqualCostTest) -> str:
    return f"{points2(row.difference)} ({bounds_text(row.low, row.high)})" if finite(row.difference) else DASH


def _names(labels: tuple[str, ...]) -> str:
    return f"{whole(len(labels))}: {', '.join(labels)}" if labels else "0"


def _setting(row: EqualCostTest) -> str:
    return " ".join(str(value) for value in row.setting if value not in ("", 0, None))


def _missing(rows: list[EqualCostTest]) -> list[str]:
    """Return a note on sets that could not be compared, by reason."""
    why: dict[str, set[str]] = {}
    for row in rows:
        for label, reason in row.missing.items():
            why.setdefault(reason, set()).add(f"{row.name} and {row.rival} on {label}")
    return [f"Not compared, because {reason}: {', '.join(sorted(names))}." for reason, names in why.items()]


TABLES = (RunTables("equal-cost", "sets", 30, equal_cost_tables),)
