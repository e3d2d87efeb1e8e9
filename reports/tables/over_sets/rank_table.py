"""Every method at equal cost on every set, and average ranks: one table per endpoint."""

from __future__ import annotations

from collections.abc import Callable

from reports.analysis.verdicts.equal_cost import ELUE_BASELINE, LEAST_SETS, OnSets, SetRanks
from reports.analysis.view import View
from reports.notation.marks import data_tag, file_tag, footnotes, marked
from reports.notation.numbers import fixed, p_value, percent, points2
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables

TEXTS = {
    "flops": "Accuracy at half of the FLOPs",
    "time": "Accuracy at half of the time",
    "score": f"ELUE score: accuracy above {ELUE_BASELINE} at the same FLOPs, in points",
}
_MIX = (
    "Half of the reference's {0}: a mix of the two neighbouring operating points that costs so much on average (some samples run "
    "with one, the others with the other); a method that is always cheaper has its dearest point, one that is always dearer is "
    "mixed with guesses that cost nothing. A method and variants of it that differ only in their number of layers are one row. "
    "Methods that are nowhere cheaper than the reference are left out."
)
_NOTES = {
    "flops": _MIX.format("FLOPs per sample (linear layers)"),
    "time": _MIX.format("wall time") + " Times have noise, so close values have no order.",
    "score": f"Score (ELUE, Liu et al., NAACL 2022): mean over a method's operating points of accuracy less that of "
    f"{ELUE_BASELINE} at the same FLOPs, on straight lines between its points. A dearer point is compared with its dearest one; a "
    "cheaper point is not scored.",
}


def rank_tables(view: View) -> list[Table[OnSets]]:
    """Return a table per endpoint and pool; none for a run of one set."""
    pools = {(one.data, one.setting) for one in view.ranks}
    tables = []
    for one in view.ranks:
        same = [setting for data, setting in pools if data == one.data]
        extra = " ".join(str(value) for value in one.setting if value not in ("", 0, None)) if len(same) > 1 else ""
        tables.append(_table(view, one, extra))
    return tables


def _table(view: View, one: SetRanks, extra: str) -> Table[OnSets]:
    names = {group.label: group.dataset for group in view.groups}
    form = points2 if one.endpoint == "score" else percent
    missing = (
        "not measured there, or too little is known (see the notes)"
        if one.endpoint != "score"
        else "no point could be scored"
    )
    columns: list[Column[OnSets]] = [
        Column("method", "Method", lambda row: marked(row.name, row.marks), numeric=False),
        *(Column[OnSets](label, names[label], form=form, missing=missing) for label in one.sets),
        Column("mean", f"Mean of {len(one.counted)}", form=form, missing="it takes no part in means and ranks"),
        Column("rank", "Average rank", form=fixed, missing="it takes no part in means and ranks" if one.ranked else ""),
    ]
    values: dict[str, Callable[[OnSets], object]] = {
        label: lambda row, label=label: row.values[label]  # type: ignore[misc]
        for label in one.sets
    }
    csv = ("method", "variant", *one.sets, "mean", "rank", "marks")
    notes = [_NOTES[one.endpoint], *rank_notes(one), *footnotes(one.methods, lowest=False)]
    name = f"ranks-{one.endpoint}{f'-{extra}'.replace(' ', '-') if extra else ''}{file_tag(one.synthetic)}"
    caption = f"{TEXTS[one.endpoint]}, with average ranks{f' ({extra})' if extra else ''}{data_tag(one.synthetic)}"
    return Table(name, caption, one.methods, columns, csv, notes, values=values)


def rank_notes(one: SetRanks) -> list[str]:
    """Return what was tested, and which sets and methods take no part."""
    notes = []
    ranked = one.ranked
    if ranked:
        notes.append(
            f"Average ranks over {len(one.counted)} sets (1 is best). That all {len(ranked)} methods rank alike: p "
            f"{p_value(one.p)} (Friedman). Two methods whose average ranks differ by less than {fixed(one.critical_difference)} "
            "are not separated at 5 % (Nemenyi; Demšar 2006). Here the sets are the sample, not their test rows."
        )
    for label, names in one.missing().items():
        notes.append(f"{label} does not count in means and ranks, because it lacks {', '.join(names)}.")
    if one.absent:
        notes.append(f"Not measured in this run, or not under the conditions of these rows: {', '.join(one.absent)}.")
    rest = [method.name for method in one.methods if method.mean is None]
    if rest:
        notes.append(
            f"Without a value on {100 * LEAST_SETS:g} % of the sets, and therefore without mean and rank: {', '.join(rest)}."
        )
    return notes


TABLES = (RunTables("ranks", "sets", 20, rank_tables),)
