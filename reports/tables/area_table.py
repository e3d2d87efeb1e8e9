"""Early exits by the area under accuracy over mean layers: one pooled table with ranks."""

from __future__ import annotations

from reports.analysis.verdicts.area_ranks import BUDGETS, AreaRank
from reports.analysis.verdicts.verdict_words import WITH_POWER, bounds_text
from reports.analysis.view import View, by_data
from reports.notation.marks import data_tag, file_tag, footnotes, marked
from reports.notation.numbers import DASH, finite, percent, percent2, points, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables

HEADING = "Early exits by area under accuracy over layers, with ranks"


def area_tables(view: View) -> list[Table[AreaRank]]:
    """Return the pooled areas; real and synthetic data apart."""
    tables = []
    for synthetic, rows in by_data(view.areas):
        pools = len({row.setting for row in rows}) > 1
        columns: list[Column[AreaRank]] = [
            Column("method", "Method", lambda row: marked(row.name, row.marks), numeric=False),
            *([Column[AreaRank]("setting", "Setting", _setting, numeric=False)] if pools else []),
            Column("sets_count", "Sets", _sets),
            Column("points", "Points", form=whole),
            Column("area", "Area % (95 % interval)", _area),
            Column("rank", "Rank (95 % interval)", _rank, missing="it has no curve on some of the sets"),
            Column("behind", "Area less that of the best, points (95 % interval)", _behind),
            Column("detectable", f"Could have found, points ({WITH_POWER})", form=lambda value: percent(value)),
        ]
        low, high = (f"{100 * end:g} %" for end in BUDGETS)
        notes = [
            f"Area: mean accuracy over budgets from {low} to {high} of the layers. A budget between two operating points of a "
            "method buys a mix of both; above its last point it buys that point, below its first one a mix of that point and of "
            "guesses that take no layer. Every method has its own rule, its own choices on dev, and all of its points at budgets; "
            "points at speeds, which not all methods have, do not count.",
            "Sets weigh the same; a test row counts once, with the mean over its seeds. Intervals by stratified bootstrap of test "
            "rows: other rows of these sets for these fits, not other sets or seeds. The difference from the best and its power "
            "are those of one comparison; where intervals of ranks overlap, methods are not separated, which is not the same as "
            "equal.",
            *_left_out(rows),
            *footnotes(rows, lowest=False),
        ]
        csv = (
            *("data", "method", "variant", "kind", "sets_count", "sets_all", "seeds", "pairs", "points", "area", "low"),
            *("high", "rank", "rank_low", "rank_high", "behind", "behind_low", "behind_high", "detectable", "marks"),
        )
        values = {"sets_count": lambda row: len(row.sets), "sets_all": lambda row: len(row.sets) + len(row.missing)}
        name = f"areas{file_tag(synthetic)}"
        tables.append(Table(name, HEADING + data_tag(synthetic), rows, columns, csv, notes, "setting", values))
    return tables


def _left_out(rows: list[AreaRank]) -> list[str]:
    names = sorted({name for row in rows for name in row.left_out})
    why = "Not compared, because they have fewer than two points at budgets, and an area would show where their points lie"
    return [f"{why}: {', '.join(names)}."] if names else []


def _setting(row: AreaRank) -> str:
    return " ".join(str(value) for value in row.setting if value not in ("", 0, None))


def _sets(row: AreaRank) -> str:
    return f"{len(row.sets)} of {len(row.sets) + len(row.missing)}"


def _area(row: AreaRank) -> str:
    return f"{percent2(row.area)} ({percent(row.low)} to {percent(row.high)})"


def _rank(row: AreaRank) -> str:
    return DASH if row.rank is None else f"{row.rank} ({row.rank_low} to {row.rank_high})"


def _behind(row: AreaRank) -> str:
    return f"{points(row.behind)} ({bounds_text(row.behind_low, row.behind_high)})" if finite(row.behind) else DASH


TABLES = (RunTables("areas", "areas", 10, area_tables),)
