"""The form of the papers' tables: FastBERT's Table 2 (Liu et al., ACL 2020), filled from a run, with published values.

Rows are a method at a speed; columns are, per dataset, accuracy and FLOPs with the FLOPs ratio to the reference. The paper calls
that ratio "speed-up"; here it is called FLOPs ratio.

Published values stand in a column of their own. They were read from the paper's table or the authors' repository:

* Chinese datasets: Liu et al., "FastBERT: a Self-distilling BERT with Adaptive Inference Time", ACL 2020, Table 2.
* AG News, two cells: the README of the authors' FastBERT repository.

Their FLOPs are 2 x MACs of linear layers of BERT-base at 128 tokens, in millions. The paper's own ratios are left out, because
two of them do not follow from its FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from reports.analysis.cell_settings import grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import Group, View, file_slug
from reports.notation.marks import file_tag, footnotes, together
from reports.notation.numbers import DASH, flops_unit, percent, percent2, plain, times
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import NO_REFERENCE, method_name, reference_names, setting_columns

LANGUAGES = {"zh": "Chinese", "en": "English"}
_FIRST = ("zh", "en")

PAPER = "Liu et al., FastBERT, ACL 2020, Table 2"
README = "README of the FastBERT repository"


@dataclass(frozen=True)
class Quoted:
    """One published cell: accuracy in 0..1, FLOPs per sample (None if only the accuracy is known), and the source."""

    accuracy: float
    flops: float | None
    source: str


_DATASETS = ("chnsenticorp", "book_review", "shopping_review", "lcqmc", "weibo", "thucnews")
# (method, point or depth): accuracies in % and MFLOPs per dataset, in the order above.
_TABLE: dict[tuple[str, str], tuple[tuple[float, ...], tuple[int, ...]]] = {
    ("bert", "full"): ((95.25, 86.88, 96.84, 86.68, 97.69, 96.71), (21785,) * 6),
    ("distilbert", "6 layers"): ((88.58, 83.31, 95.40, 84.12, 97.69, 95.54), (10918,) * 6),
    ("distilbert", "3 layers"): ((87.33, 81.17, 94.84, 84.07, 97.58, 95.14), (5428,) * 6),
    ("distilbert", "1 layers"): ((81.33, 77.40, 91.35, 71.34, 96.90, 91.13), (1858,) * 6),
    ("fastbert", "speed=0.1"): ((95.25, 86.88, 96.79, 86.59, 97.71, 96.71), (10741, 13613, 4885, 12930, 3691, 3595)),
    ("fastbert", "speed=0.5"): ((92.00, 86.64, 96.42, 84.05, 97.72, 95.64), (3191, 5170, 2517, 6352, 3341, 1979)),
    ("fastbert", "speed=0.8"): ((89.75, 85.14, 95.72, 77.45, 97.69, 94.97), (2315, 3012, 2087, 3310, 1982, 1854)),
}
QUOTED: dict[tuple[str, str, str], Quoted] = {
    (dataset, *row): Quoted(round(accuracy / 100, 4), mflops * 1e6, PAPER)
    for row, values in _TABLE.items()
    for dataset, accuracy, mflops in zip(_DATASETS, *values, strict=True)
}
QUOTED["ag_news", "bert", "full"] = Quoted(0.9447, None, README)
QUOTED["ag_news", "fastbert", "speed=0.5"] = Quoted(0.9314, 2108e6, README)


def quoted(row: ResultRow) -> Quoted | None:
    """Return what a paper prints for a row of the view; None where nothing verified is known or the row is of another kind.

    Synthetic data and backbones that are not twelve layers deep are of another kind. Rows of DistilBERT are identified by
    their depth, those of FastBERT by their speed; its two executions here are one row there.
    """
    if row.synthetic or row.reference_depth != 12:
        return None
    method = "fastbert" if row.method == "fastbert-faithful" else row.method
    point = f"{row.depth:g} layers" if method == "distilbert" else row.point
    return QUOTED.get((row.dataset, method, point))


@dataclass(frozen=True, kw_only=True)
class PaperRow(ResultRow):
    """A method at a point on several datasets: dataset -> its row. What it inherits is that of its first dataset."""

    on: Mapping[str, ResultRow]


def paper_tables(view: View) -> list[Table[PaperRow]]:
    """Return one table per language (Chinese first, as in the paper), real and synthetic data apart."""
    halves = grouped(view.groups, lambda group: (group.synthetic, group.language))
    order = sorted(halves, key=lambda k: (k[0], _FIRST.index(k[1]) if k[1] in _FIRST else len(_FIRST), k[1]))
    return [table for key in order if (table := _half(view, halves[key])) is not None]


def _rows(view: View, shown: Sequence[ResultRow], names: Mapping[str, str]) -> list[PaperRow]:
    """Return the rows of several datasets side by side, the reference first."""
    wide: dict[tuple[Hashable, ...], PaperRow] = {}
    for row in shown:
        key = values_of(row, ("method", "point", *view.varying))
        one = wide.get(key) or PaperRow(**vars(row), on={})
        marks = together(one.marks, row.marks)
        wide[key] = replace(one, marks=marks, on={**one.on, names[row.slug]: row})
    return sorted(wide.values(), key=lambda row: (not row.is_reference, row.method))


def _half(view: View, groups: list[Group]) -> Table[PaperRow] | None:
    names = {group.slug: group.dataset for group in groups}
    shown = [row for row in view.rows if row.kind == "method" and row.slug in names]
    if not shown:
        return None
    rows = _rows(view, shown, names)
    sources = list(dict.fromkeys(known.source for row in shown if (known := quoted(row)) is not None))
    language, synthetic = groups[0].language, groups[0].synthetic
    protocols = sorted({row.protocol for row in shown})
    text = "the paper pads every sample to 128 tokens, so its FLOPs are higher."
    padding = [] if protocols == ["paper"] else [f"Protocol {', '.join(protocols)}: {text}"]
    columns: list[Column[PaperRow]] = [
        Column("method", "Model", method_name, numeric=False),
        Column("point", "Speed", numeric=False),
        *setting_columns(view),
        *(column for group in groups for column in _columns(group.dataset, rows)),
    ]
    values = {name: value for group in groups for name, value in _values(group.dataset, rows).items()}
    return Table(
        f"paper-{file_slug(language)}{file_tag(synthetic)}",
        f"{LANGUAGES.get(language, language or 'unnamed language')} datasets in the form of FastBERT's Table 2"
        + (", synthetic data" if synthetic else ""),
        rows,
        columns,
        ("data", "language", "method", "point", *view.varying, *values),
        [*_notes(shown, sources), *footnotes(rows, lowest=False), *padding],
        values=values,
    )


def _notes(shown: Sequence[ResultRow], sources: Sequence[str]) -> list[str]:
    notes = [
        f"FLOPs per sample, linear layers only, with the FLOPs ratio to {reference_names(shown)} in brackets. "
        "FastBERT prints that ratio as its speed-up; it is not wall time. All numbers were measured in this run"
        + (", except those headed published." if sources else ".")
    ]
    if sources:
        notes.append(
            f"Published (quoted, not measured here): {'; '.join(sources)}; BERT-base padded to 128 tokens, the authors' training "
            "and test rows, FLOPs in the same convention."
        )
    seeds = max(row.seeds for row in shown)
    return notes + ([f"Means over {seeds} seeds."] if seeds > 1 else [])


def _published(row: PaperRow, dataset: str) -> Quoted | None:
    return quoted(row.on[dataset]) if dataset in row.on else None


def _values(dataset: str, rows: Sequence[PaperRow]) -> dict[str, Callable[[PaperRow], object]]:
    """Return the raw values of one dataset by their names."""

    def value(get: Callable[[PaperRow], object], name: str) -> Callable[[PaperRow], object]:
        return lambda row: getattr(get(row), name, None)

    measured, published = (lambda row: row.on.get(dataset)), (lambda row: _published(row, dataset))
    found = {f"{dataset} {name}": value(measured, name) for name in ("accuracy", "flops_linear", "ratio_linear")}
    if any(published(row) for row in rows):
        found |= {f"{dataset} published {name}": value(published, name) for name in ("accuracy", "flops")}
    return found


def _columns(dataset: str, rows: Sequence[PaperRow]) -> list[Column[PaperRow]]:
    mine = [row.on[dataset] for row in rows if dataset in row.on]
    divisor, unit = flops_unit(max((row.flops_linear or 0.0 for row in mine), default=0.0))
    why = "the method was not measured on this dataset at this point"
    # A dash alone is a cell that was not measured; a dash in the brackets is a missing reference.
    reference = "" if any(row.ratio_linear is not None for row in mine) else f"; in brackets: {NO_REFERENCE}"

    def cost(row: PaperRow) -> str:
        one = row.on.get(dataset)
        if one is None or one.flops_linear is None:
            return DASH
        return f"{plain(one.flops_linear / divisor)}{unit} ({times(one.ratio_linear)})"

    def published(row: PaperRow) -> str:
        known = _published(row, dataset)
        if known is None:
            return DASH
        return percent(known.accuracy, 2) + (f"; {plain(known.flops / 1e9)}G" if known.flops is not None else "")

    columns = [
        Column(f"{dataset} accuracy", "Acc. %", missing=why, group=dataset, form=percent2),
        Column(f"{dataset} flops_linear", "FLOPs (FLOPs ratio)", cost, missing=why + reference, group=dataset),
    ]
    if any(_published(row, dataset) for row in rows):
        why, name = "no verified published value for this row", f"{dataset} published accuracy"
        columns.append(Column(name, "published: acc. %; FLOPs", published, missing=why, group=dataset))
    return columns


TABLES = (RunTables("papers", "papers", 10, paper_tables),)
