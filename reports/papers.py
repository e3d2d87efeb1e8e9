"""The table form of the papers: FastBERT's Table 2 (Liu et al., ACL 2020), filled from a run.

Rows are a method at a speed; columns are, per dataset, accuracy and FLOPs with the FLOPs ratio to the reference. The
paper heads that ratio "speed-up"; here it is named what it is. ``python -m reports.papers RUN`` writes the files and
prints them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.command_line import exit_codes
from harness.core.errors import ResultError
from harness.core.files import write_atomic
from reports.analysis.cell_settings import SETTING
from reports.analysis.view import Group, View, build_view, file_slug
from reports.notation.marks import footnotes, together
from reports.notation.numbers import DASH, flops_unit, percent, plain, times
from reports.tables.formats import Column, Row, Table, to_csv, to_latex, to_markdown
from reports.tables.published_values import quoted
from reports.tables.summary import NO_REFERENCE, method_name, reference_names, setting_columns

LANGUAGES = {"zh": "Chinese", "en": "English"}
_FIRST = ("zh", "en")


def paper_tables(view: View) -> list[Table]:
    """One table per language (Chinese first, as in the paper), real and synthetic data apart."""
    halves: dict[tuple[bool, str], list[Group]] = {}
    for group in view.groups:
        halves.setdefault((group.synthetic, group.language), []).append(group)
    order = sorted(halves, key=lambda k: (k[0], _FIRST.index(k[1]) if k[1] in _FIRST else len(_FIRST), k[1]))
    return [table for key in order if (table := _half(view, halves[key])) is not None]


def _half(view: View, groups: list[Group]) -> Table | None:
    slugs = {group.slug: number for number, group in enumerate(groups)}
    # Backbone and source differ between datasets, not between the rows of one dataset, unless they are shown.
    identity = ("method", "point", *(name for name in SETTING if name in view.varying))
    wide: dict[tuple[Any, ...], dict[str, Any]] = {}
    sources: dict[str, None] = {}
    shown = view.rows[(view.rows["kind"] == "method") & view.rows["slug"].isin(list(slugs))]
    if not len(shown):
        return None
    for plain_record in shown.to_dict("records"):
        record = {str(key): value for key, value in plain_record.items()}
        key = tuple(record[name] for name in identity)
        row = wide.setdefault(
            key, {name: record[name] for name in (*identity, "kind", "data", "language", "is_reference")}
        )
        row["marks"] = together(str(row.get("marks", "")), str(record["marks"]))
        dataset = groups[slugs[record["slug"]]].dataset
        for name in ("accuracy", "flops_linear", "ratio_linear"):
            row[f"{dataset} {name}"] = record[name]
        if (known := quoted(record)) is not None:
            row.update({f"{dataset} published accuracy": known.accuracy, f"{dataset} published flops": known.flops})
            sources.setdefault(known.source)
    rows = sorted(wide.values(), key=lambda r: (not r["is_reference"], r["method"]))
    frame = pd.DataFrame(rows).astype(object)
    frame = frame.where(frame.notna(), None)
    language = groups[0].language
    name = LANGUAGES.get(language, language or "unnamed language")
    synthetic = groups[0].synthetic
    columns = [
        Column("method", "Model", method_name, numeric=False),
        Column("point", "Speed", lambda r: r["point"], numeric=False),
        *setting_columns(view),
        *(column for group in groups for column in _dataset_columns(group, frame)),
    ]
    kept = ("accuracy", "flops_linear", "ratio_linear", "published accuracy", "published flops")
    numbers = [name for g in groups for n in kept if (name := f"{g.dataset} {n}") in frame]
    caption = f"{name} datasets in the form of FastBERT's Table 2" + (", synthetic data" if synthetic else "")
    notes = [
        (
            f"FLOPs per sample, linear layers only, with the FLOPs ratio to {reference_names(shown)} in brackets. "
            "FastBERT prints that ratio as its speed-up; it is not wall time. All numbers were measured in this run"
            + (", but those headed published." if sources else ".")
        )
    ]
    if sources:
        notes.append(
            f"Published (quoted, not measured here): {'; '.join(sources)}; BERT-base padded to 128 tokens, the authors' training "
            "and test rows, FLOPs in the same convention."
        )
    if int(shown["seeds"].max()) > 1:
        notes.append(f"Means over {int(shown['seeds'].max())} seeds.")
    notes += footnotes(frame)
    if set(shown["protocol"]) != {"paper"}:
        notes.append(
            f"Protocol {', '.join(sorted(set(shown['protocol'])))}: the paper pads every sample to 128 tokens, "
            "so its FLOPs are higher."
        )
    slug = f"paper-{file_slug(language)}" + ("-synthetic" if synthetic else "")
    return Table(slug, caption, frame, columns, ("data", "language", *identity, *numbers), notes)


def _dataset_columns(group: Group, frame: pd.DataFrame) -> list[Column]:
    accuracy, flops, ratio = (f"{group.dataset} {name}" for name in ("accuracy", "flops_linear", "ratio_linear"))
    divisor, unit = flops_unit(max((value for value in frame[flops] if value is not None), default=0.0))
    why = "the method was not measured on this dataset at this point"

    def cost(row: Row) -> str:
        if row[flops] is None:
            return DASH
        return f"{plain(row[flops] / divisor)}{unit} ({times(row[ratio])})"

    # A bare dash is a cell that was not measured; a dash in the brackets is a missing reference.
    reference = "" if frame[ratio].notna().any() else f"; in brackets: {NO_REFERENCE}"
    columns = [
        Column(accuracy, "Acc. %", lambda row: percent(row[accuracy], 2), missing=why, group=group.dataset),
        Column(flops, "FLOPs (FLOPs ratio)", cost, missing=why + reference, group=group.dataset),
    ]
    told, told_flops = f"{group.dataset} published accuracy", f"{group.dataset} published flops"
    if told not in frame:
        return columns

    def published(row: Row) -> str:
        size = f"; {plain(row[told_flops] / 1e9)}G" if row[told_flops] is not None else ""
        return percent(row[told], 2) + size if row[told] is not None else DASH

    why = "no verified published value for this row"
    return [*columns, Column(told, "published: acc. %; FLOPs", published, missing=why, group=group.dataset)]


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write every table as Markdown, CSV and LaTeX; returns the paths.

    Raises:
        ResultError: the folder cannot be written.
    """
    paths = []
    for table in tables:
        for suffix, render in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            path = folder / f"{table.name}.{suffix}"
            text = render(table)
            write_atomic(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))  # type: ignore[misc]
            paths.append(path)
    return paths


@exit_codes("papers")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``RUN/report/tables/paper-*`` and print the Markdown; 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.papers", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, as made by 'geep-bench run --out RUN'")
    options = parser.parse_args(arguments)
    tables = paper_tables(build_view(options.run, samples=False))
    if not tables:
        raise ResultError(
            f"no row of kind 'method' in {options.run}: run at least one method, e.g. --methods bert,fastbert"
        )
    write_tables(tables, options.run / "report" / "tables")
    sys.stdout.write("\n".join(to_markdown(table) for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
