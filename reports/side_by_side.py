"""Several runs in one table: a row per method and point, and per dataset accuracy, layers, speed-up and the paired test.

``python -m reports.side_by_side RUN RUN ... --out FOLDER`` writes ``side-by-side.{md,csv,tex}`` there and prints the Markdown.
It reads the CSV files of the runs' reports, and the results for the training cost; published runs, which have no per-sample
rows, are sufficient. A dataset may be in several runs of one setting, for example when a method was added later: the methods of
the first run are kept, and the other runs add theirs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Literal

import pandas as pd

from harness.core.command_line import exit_codes
from harness.core.errors import ResultError
from harness.core.names import from_csv
from harness.results.comparability import differences, training_differences
from harness.results.run_folder import RunFolder
from harness.results.schema import Binding, Result
from harness.results.stored import read_result
from reports.analysis.conditions import find_conditions
from reports.notation.marks import data_tag, file_tag, footnotes, marked
from reports.notation.numbers import DASH, finite, fixed, p_value, percent, points, span, times, whole
from reports.notation.table_formats import Column, Table, to_markdown, write_tables
from reports.tables.shared_columns import UNTRAINED, method_name

NAME = "side-by-side"
IDENTITY = ("method", "point")
COSTS = ("n", "accuracy", "accuracy_low", "accuracy_high", "mean_layers", "speedup", "ratio_linear", "samples_per_s")
TESTED = ("difference", "difference_low", "difference_high", "p", "p_holm")
TRAINING = ("train_flops", "train_ratio")
NUMBERS = (*COSTS, *TESTED, *TRAINING)
# Settings that all runs of a dataset must share.
SETTING = ("source", "backbone", "protocol", "device", "dtype", "seed_list", "reference")
# The same of their references: speed-ups over passes that ran otherwise cannot stand in one column.
REFERENCE = ("order", "batch_size", "batch_tokens", "compute", "engine")


@dataclass(frozen=True)
class Part:
    """One dataset: the first run that has it, its rows, what its cells share, how its reference ran, notes on others."""

    run: Path
    rows: pd.DataFrame
    bindings: tuple[Binding | None, ...]
    ways: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass
class SideRow:
    """A method at a point: dataset -> the numbers and marks measured there. Marks stand at the datasets, not at the method."""

    kind: str
    method: str
    point: str
    on: dict[str, SimpleNamespace]
    marks: Literal[""] = ""


def _read(run: Path, name: str) -> pd.DataFrame:
    """Return a table of a run's report, of real and of synthetic data together; empty where there is none."""
    folder = run / "report" / "tables"
    if not folder.is_dir():
        raise ResultError(f"no report in {run}: make it with 'geep-bench report {run}'")
    paths = [path for end in ("", "-synthetic") if (path := folder / f"{name}{end}.csv").is_file()]
    try:
        tables = [pd.read_csv(path, keep_default_na=False, na_values=[""]).map(from_csv) for path in paths]
        return pd.concat(tables or [pd.DataFrame()])
    except (OSError, ValueError) as error:
        raise ResultError(
            f"cannot read {paths[0]} ({error}): make the report with 'geep-bench report {run}'"
        ) from error


def _rows(run: Path) -> tuple[pd.DataFrame, list[Result]]:
    """Return the rows of a run's summary, each with its paired test against the reference, if there is one; and the results."""
    summary, tests = _read(run, "summary"), _read(run, "rivals")
    results = _results(run)
    try:
        keys = ["data", "dataset", *IDENTITY]
        again = summary.duplicated(keys)
        if again.any():
            row = summary[again].iloc[0]
            raise ResultError(
                f"{run} has {row['method']} {row['point']} on {row['dataset']} in several settings: give runs of one setting"
            )
        if tests.empty:
            tests = pd.DataFrame(columns=[*keys, "rival", *TESTED])
        reference = summary.groupby("dataset")["reference"].first()
        tests = tests[tests["rival"] == tests["dataset"].map(reference)]
        joined = summary.merge(tests[[*keys, *TESTED]], how="left", on=keys, validate="one_to_one")
        trained = _training(results)
        for name, source in (("train_flops", "method"), ("reference_flops", "reference")):
            pairs = zip(joined["dataset"], joined[source], strict=True)
            joined[name] = pd.Series([trained.get(pair) for pair in pairs], dtype=float)
        joined["train_ratio"] = joined["train_flops"] / joined["reference_flops"]
        return joined[[*keys, "kind", *SETTING, "marks", *NUMBERS]], results
    except (KeyError, ValueError) as error:
        raise ResultError(f"the report of {run} is of another version ({error}): make it again") from error


def _results(run: Path) -> list[Result]:
    """Return all results of a run. Unlike RunFolder.results, this only reads: broken files stay where they are."""
    paths = sorted((run / "results").glob("*.json"))
    if not paths:
        raise ResultError(f"no results in {run / 'results'}: give a run folder with results and report")
    found = []
    for path in paths:
        try:
            found.append(read_result(path).result)
        except (OSError, ValueError) as error:
            raise ResultError(f"cannot read {path}: repair the run with 'geep-bench report {run}'") from error
    if apart := find_conditions(RunFolder(run), found).apart:
        raise ResultError(f"{run}: {apart[0]}")
    return found


def _training(results: Sequence[Result]) -> dict[tuple[str, str], float]:
    """Return (dataset, method) -> FLOPs of its training, mean over seeds, where they were counted."""
    found: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.training is not None and result.training.flops is not None:
            found.setdefault((result.cell.dataset, result.cell.method), []).append(result.training.flops)
    return {pair: fmean(flops) for pair, flops in found.items()}


def side_by_side(runs: Sequence[Path]) -> list[Table[SideRow]]:
    """Return the table; real and synthetic data apart.

    Raises:
        ResultError: a run has no report, or one of another version; a dataset is in one run under several settings, or in
            two runs whose cells do not belong together or that have all their methods in common.
    """
    found: dict[str, dict[str, Part]] = {}
    for run in runs:
        rows, results = _rows(run)
        for data, dataset in dict.fromkeys(zip(rows["data"], rows["dataset"], strict=True)):
            parts = found.setdefault(data, {})
            same = [one for one in results if one.cell.dataset == dataset and one.synthetic == (data == "synthetic")]
            own = rows[(rows["data"] == data) & (rows["dataset"] == dataset)]
            part = Part(run, own, tuple(one.binding for one in same), _ways(same))
            parts[dataset] = _joined(dataset, parts[dataset], part) if dataset in parts else part
    return [_table(parts, data == "synthetic") for data, parts in sorted(found.items())]


def _ways(results: Sequence[Result]) -> dict[str, str]:
    """Return how the passes ran that speed-ups refer to."""
    names = {one.speed.reference for one in results if one.speed}
    cells = [one.cell for one in results if one.cell.method in names]
    return {name: ", ".join(sorted({str(getattr(cell, name)) for cell in cells})) for name in REFERENCE}


def _joined(dataset: str, first: Part, second: Part) -> Part:
    """Return a dataset with the methods that only another run has."""
    both, others = f"{dataset} is in {first.run} and in {second.run}", second.rows
    here, there = _setting(first.rows), _setting(others)
    here |= {f"{name} of the reference": value for name, value in first.ways.items()}
    there |= {f"{name} of the reference": value for name, value in second.ways.items()}
    differ = [f"{name} {here[name]} and {there[name]}" for name in here if here[name] != there[name]]
    pairs = list(itertools.product(first.bindings, second.bindings))
    differ += dict.fromkeys(words for pair in pairs for words in differences(*pair, across_code=True))
    if differ:
        raise ResultError(f"{both}, which differ ({'; '.join(differ)}): give runs of one setting and one reference")
    if here["accuracy of the reference"] is None:
        raise ResultError(f"{both}, which have no reference in common: give one of them")
    more = others[~others["method"].isin(first.rows["method"])]
    if more.empty:
        raise ResultError(f"{both}, which has no other methods: give one of them")
    names = ", ".join(dict.fromkeys(more["method"]))
    note = f"{dataset}: measured in another run, beside the same {more['reference'].iloc[0]} timed again: {names}."
    trained = dict.fromkeys(words for pair in pairs for words in training_differences(*pair))
    apart = [f"{dataset}: {first.run} and {second.run} differ in {', '.join(trained)}."] if trained else []
    bindings = (*first.bindings, *second.bindings)
    return Part(first.run, pd.concat([first.rows, more]), bindings, first.ways, (*first.notes, note, *apart))


def _setting(rows: pd.DataFrame) -> dict[str, object]:
    """Return what runs must share to stand in one column; the reference's accuracy and training identify its weights."""
    own = rows[rows["method"] == rows["reference"]]
    return {
        "test rows": _sizes(rows),
        **{name: ", ".join(map(str, rows[name].unique())) for name in SETTING},
        "accuracy of the reference": own["accuracy"].iloc[0] if len(own) else None,
        "training of the reference": own["train_flops"].iloc[0] if own["train_flops"].notna().any() else None,
    }


def _table(parts: dict[str, Part], synthetic: bool) -> Table[SideRow]:
    wide: dict[tuple[str, str], SideRow] = {}
    for dataset, part in parts.items():
        for record in part.rows.astype(object).where(part.rows.notna(), None).to_dict("records"):
            key = record["method"], record["point"]
            row = wide.setdefault(key, SideRow(record["kind"], *key, on={}))
            row.on[dataset] = SimpleNamespace(**record | {"marks": record["marks"] or ""})
    kinds = ("method", "control", "bound")
    rows = sorted(wide.values(), key=lambda row: kinds.index(row.kind))
    columns: list[Column[SideRow]] = [
        Column("method", "Method", method_name, numeric=False),
        Column("point", "Point", numeric=False),
        Column("training", "Training", _training_ratio, missing=f"{UNTRAINED}, or it was not counted"),
        *(column for dataset in parts for column in _columns(dataset)),
    ]
    values = {f"{dataset} {name}": _value(dataset, name) for dataset in parts for name in (*NUMBERS, "marks")}
    return Table(
        NAME + file_tag(synthetic),
        "Every method on every dataset" + data_tag(synthetic),
        rows,
        columns,
        ("kind", *IDENTITY, *values),
        [*_notes(parts), *footnotes([one for row in rows for one in row.on.values()])],
        split="kind",
        values=values,
    )


def _value(dataset: str, name: str) -> Callable[[SideRow], object]:
    return lambda row: getattr(row.on.get(dataset), name, None)


def _training_ratio(row: SideRow) -> str:
    """Return FLOPs of training over those of the reference: one number, or the lowest and highest of the datasets."""
    ratios = [ratio for one in row.on.values() if finite(ratio := one.train_ratio)]
    if not ratios:
        return DASH
    low, high = fixed(min(ratios)), fixed(max(ratios))
    return f"{low}×" if low == high else f"{low}–{high}×"


def _columns(dataset: str) -> list[Column[SideRow]]:
    why = "the method was not measured on this dataset at this point"
    untested = "not tested: the reference itself, a control or bound, or not measured at this point"

    def accuracy(row: SideRow) -> str:
        one = row.on.get(dataset)
        if one is None or not finite(one.accuracy):
            return DASH
        return marked(f"{percent(one.accuracy)} ({span(one.accuracy_low, one.accuracy_high, percent)})", one.marks)

    def difference(row: SideRow) -> str:
        one = row.on.get(dataset)
        if one is None or not finite(one.difference):
            return DASH
        return f"{points(one.difference)} ({'too few differ' if one.p_holm is None else p_value(one.p_holm)})"

    return [
        Column(f"{dataset} accuracy", "accuracy % (95 %)", accuracy, missing=why, group=dataset),
        Column(f"{dataset} mean_layers", "layers", missing=why, group=dataset, form=fixed),
        Column(f"{dataset} speedup", "speed-up", missing=why, group=dataset, form=times),
        Column(f"{dataset} difference", "points (p adjusted)", difference, missing=untested, group=dataset),
    ]


def _notes(parts: dict[str, Part]) -> list[str]:
    names = sorted({str(name) for part in parts.values() for name in part.rows["reference"].dropna()})
    reference = " or ".join(names) or "a reference"
    each = [
        f"{dataset}: {_sizes(part.rows)} test rows, {part.rows['backbone'].iloc[0]}" for dataset, part in parts.items()
    ]
    return [
        f"{'; '.join(each)}.",
        *(note for part in parts.values() for note in part.notes),
        f"Speed-up: wall time of {reference} over the method's, same rounds. Points: accuracy less that of the reference on the "
        "same test rows; p: exact McNemar test, adjusted (Holm) within its own run; one family is one method over its points. "
        "“Too few differ”: no outcome of so few discordant rows could be significant (Tarone). A p above 0.05 says only that no "
        "difference was found.",
        f"Training: FLOPs of the layers, forward and backward, over those of {reference}, from the lowest to the highest of the "
        "datasets that have them. They include the fine-tuning of the model that a method starts or learns from; heads, general "
        "distillation, choosing thresholds and filling GEEP's table are not included.",
        "Backbone, training rows and machine may differ between datasets, and machines between runs; the report of each run says "
        "which.",
    ]


def _sizes(rows: pd.DataFrame) -> str:
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return whole(low) if low == high else span(low, high, whole)


@exit_codes("side_by_side")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and print their Markdown; return 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.side_by_side", description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders with reports, published or your own"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the table here, as Markdown, CSV and LaTeX")
    options = parser.parse_args(arguments)
    tables = side_by_side(options.runs)
    if options.out is not None:
        write_tables(tables, options.out)
    sys.stdout.write("\n".join(to_markdown(table) for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
