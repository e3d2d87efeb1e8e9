"""The form of the papers' tables: FastBERT's Table 2 (Liu et al., ACL 2020), filled from a run, with published values.

Rows are a method at a speed; columns are, per dataset, accuracy and FLOPs with the FLOPs ratio to the reference. The paper calls
that ratio "speed-up"; here it is called FLOPs ratio.

Published values stand in a column of their own; ``published.toml`` beside this file holds them with their sources.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from reports.analysis.cell_settings import grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import Group, View, file_slug
from reports.notation.marks import file_tag, footnotes, together
from reports.notation.numbers import DASH, flops_unit, percent, percent2, plain, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import RunTables
from reports.tables.shared_columns import NO_REFERENCE, method_name, reference_names, setting_columns

LANGUAGES = {"zh": "Chinese", "en": "English"}
_FIRST = ("zh", "en")


@dataclass(frozen=True)
class Quoted:
    """One published cell: accuracy in 0..1, FLOPs per sample (None if only the accuracy is known), and the source."""

    accuracy: float
    flops: float | None
    source: str


def _published_values() -> tuple[str, float, dict[tuple[str, str, str], Quoted]]:
    """Return under which conditions they were measured, FLOPs of the reference, and (dataset, method, point) -> value."""
    data = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
    found = {
        (dataset, row["method"], row["point"]): Quoted(
            round(accuracy / 100, 4), mflops * 1e6 if mflops else None, table["source"]
        )
        for table in data["tables"]
        for row in table["rows"]
        for dataset, accuracy, mflops in zip_longest(table["datasets"], row["accuracy"], row.get("mflops", []))
    }
    return data["conditions"], data["full_mflops"] * 1e6, found


CONDITIONS, FULL_FLOPS, QUOTED = _published_values()


def quoted(row: ResultRow, families: Mapping[str, str]) -> Quoted | None:
    """Return what a paper prints for a row of the view; None where nothing verified is known or the row is of another kind.

    Synthetic data and backbones that are not twelve layers deep are of another kind. Rows of DistilBERT are identified by
    their depth, those of FastBERT by their speed; its two executions here are one row there.

    Args:
        families: method -> the method that it is, with another number of layers.
    """
    if row.synthetic or row.reference_depth != 12:
        return None
    method = "fastbert" if row.method == "fastbert-faithful" else families.get(row.method, row.method)
    point = f"{row.depth:g} layers" if method == "distilbert" else row.point
    return QUOTED.get((row.dataset, method, point))


@dataclass(frozen=True, kw_only=True)
class PaperRow(ResultRow):
    """A method at a point on several datasets. What it inherits is that of its first dataset.

    Attributes:
        on: dataset -> its row.
        published: dataset -> what a paper prints for it.
    """

    on: Mapping[str, ResultRow]
    published: Mapping[str, Quoted]


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
        one = wide.get(key) or PaperRow(**vars(row), on={}, published={})
        marks, known = together(one.marks, row.marks), quoted(row, view.families)
        published = one.published if known is None else {**one.published, names[row.slug]: known}
        wide[key] = replace(one, marks=marks, on={**one.on, names[row.slug]: row}, published=published)
    return sorted(wide.values(), key=lambda row: (not row.is_reference, row.method))


def _half(view: View, groups: list[Group]) -> Table[PaperRow] | None:
    names = {group.slug: group.dataset for group in groups}
    shown = [row for row in view.rows if row.kind == "method" and row.slug in names]
    if not shown:
        return None
    rows = _rows(view, shown, names)
    language, synthetic = groups[0].language, groups[0].synthetic
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
        [*_notes(view, shown, rows), *footnotes(rows, lowest=False)],
        values=values,
    )


def _notes(view: View, shown: Sequence[ResultRow], rows: Sequence[PaperRow]) -> list[str]:
    sources = list(dict.fromkeys(known.source for row in rows for known in row.published.values()))
    notes = [
        f"FLOPs per sample, linear layers only, with the FLOPs ratio to {reference_names(shown)} in brackets. "
        "FastBERT prints that ratio as its speed-up; it is not wall time. All numbers were measured in this run"
        + (", except those headed published." if sources else ".")
    ]
    if sources:
        notes += [
            f"Published (quoted, not measured here): {'; '.join(sources)}: {CONDITIONS}. FLOPs in the same convention, their ratio "
            f"to {plain(FULL_FLOPS / 1e9)}G in brackets.",
            f"What differs here: {_conditions(view, shown)}. Compare methods within this run, not with the published columns.",
        ]
    protocols = sorted({row.protocol for row in shown})
    if protocols != ["paper"]:
        text = "the paper pads every sample to 128 tokens, so its FLOPs are higher."
        notes.append(f"Protocol {', '.join(protocols)}: {text}")
    seeds = max(row.seeds for row in shown)
    return notes + ([f"Means over {seeds} seeds."] if seeds > 1 else [])


def _conditions(view: View, shown: Sequence[ResultRow]) -> str:
    """Return backbones, rows and lengths of this run in words."""
    backbones = dict.fromkeys(f"{row.backbone}, {row.reference_depth:g} layers" for row in shown if row.reference_depth)
    sizes: dict[str, list[str]] = {}
    for dataset, same in grouped(shown, lambda row: row.dataset).items():
        train, length = view.train_rows.get(dataset), max(row.max_length for row in same)
        parts = [f"{whole(max(row.n for row in same))} test rows"]
        parts += [f"at most {whole(train)} train rows"] if train else []
        parts += [f"at most {length} tokens"] if length else []
        sizes.setdefault(", ".join(parts), []).append(dataset)
    alike = len(sizes) == 1
    each = [text if alike else f"{text} ({', '.join(names)})" for text, names in sizes.items()]
    return f"{' and '.join(backbones)}; {'; '.join(each)}"


def _values(dataset: str, rows: Sequence[PaperRow]) -> dict[str, Callable[[PaperRow], object]]:
    """Return the raw values of one dataset by their names."""

    def value(get: Callable[[PaperRow], object], name: str) -> Callable[[PaperRow], object]:
        return lambda row: getattr(get(row), name, None)

    measured, published = (lambda row: row.on.get(dataset)), (lambda row: row.published.get(dataset))
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
        known = row.published.get(dataset)
        if known is None:
            return DASH
        flops = known.flops and f"; {plain(known.flops / 1e9)}G ({times(FULL_FLOPS / known.flops)})"
        return percent(known.accuracy, 2) + (flops or "")

    columns = [
        Column(f"{dataset} accuracy", "Acc. %", missing=why, group=dataset, form=percent2),
        Column(f"{dataset} flops_linear", "FLOPs (FLOPs ratio)", cost, missing=why + reference, group=dataset),
    ]
    if any(dataset in row.published for row in rows):
        why, name = "no verified published value for this row", f"{dataset} published accuracy"
        columns.append(Column(name, "published: acc. %; FLOPs (ratio)", published, missing=why, group=dataset))
    return columns


TABLES = (RunTables("papers", "papers", 10, paper_tables),)
