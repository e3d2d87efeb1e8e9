"""Several runs in one table: a row per method and point, and per dataset accuracy, layers, speed-up and the paired test.

``python -m reports.side_by_side RUN RUN ... --out FOLDER`` writes ``side-by-side.{md,csv,tex}`` there and prints the Markdown.
It reads the CSV files of the runs' reports, and results for what training took, so that published runs, which have no
per-sample rows, will do.
A dataset may be in several runs of one setting, say when a method came later: the first run's methods stand, the others add theirs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from harness.core.command_line import exit_codes
from harness.core.errors import ResultError
from harness.results.schema import Result
from reports.notation.marks import footnotes, marked
from reports.notation.numbers import DASH, finite, fixed, p_value, percent, points, span, times, whole
from reports.papers import write_tables
from reports.tables.formats import Column, Row, Table, to_markdown
from reports.tables.summary import UNTRAINED, data_tag, method_name

NAME = "side-by-side"
IDENTITY = ("method", "point")
COSTS = ("n", "accuracy", "accuracy_low", "accuracy_high", "mean_layers", "speedup", "ratio_linear", "samples_per_s")
TESTED = ("difference", "difference_low", "difference_high", "p", "p_holm")
TRAINING = ("train_flops", "train_ratio")
SETTING = ("source", "backbone", "protocol", "device", "dtype", "seed_list", "reference")  # that a dataset's runs share

Parts = dict[str, tuple[Path, pd.DataFrame, list[str]]]  # dataset -> its first run, its rows, notes on the other runs


def _read(run: Path, name: str) -> pd.DataFrame:
    """A table of a run's report, of real and of synthetic data; empty where it has none."""
    folder = run / "report" / "tables"
    if not folder.is_dir():
        raise ResultError(f"no report in {run}: make it with 'geep-bench report {run}'")
    paths = [path for end in ("", "-synthetic") if (path := folder / f"{name}{end}.csv").is_file()]
    try:
        return pd.concat(
            [pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in paths] or [pd.DataFrame()]
        )
    except (OSError, ValueError) as error:
        raise ResultError(
            f"cannot read {paths[0]} ({error}): make the report with 'geep-bench report {run}'"
        ) from error


def _rows(run: Path) -> pd.DataFrame:
    """Rows of a run's summary, each with its paired test against the run's reference, if one was made."""
    summary, tests = _read(run, "summary"), _read(run, "rivals")
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
        learnt = _training(run)
        for name, whose in (("train_flops", "method"), ("reference_flops", "reference")):
            pairs = zip(joined["dataset"], joined[whose], strict=True)
            joined[name] = pd.Series([learnt.get(pair) for pair in pairs], dtype=float)
        joined["train_ratio"] = joined["train_flops"] / joined["reference_flops"]
        return joined[[*keys, "kind", *SETTING, "marks", *COSTS, *TESTED, *TRAINING]]
    except (KeyError, ValueError) as error:
        raise ResultError(f"the report of {run} is of another version ({error}): make it again") from error


def _training(run: Path) -> dict[tuple[str, str], float]:
    """Dataset and method -> FLOPs of its training, mean of its seeds, where something was trained and counted."""
    found: dict[tuple[str, str], list[float]] = {}
    paths = sorted((run / "results").glob("*.json"))
    if not paths:
        raise ResultError(f"no results in {run / 'results'}: give a run folder with results and report")
    for path in paths:  # not RunFolder.results, which moves broken files away: here a run is read, not mended
        try:
            result = Result.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ResultError(f"cannot read {path}: mend the run with 'geep-bench report {run}'") from error
        if result.training is not None and result.training.flops is not None:
            found.setdefault((result.cell.dataset, result.cell.method), []).append(result.training.flops)
    return {pair: fmean(flops) for pair, flops in found.items()}


def side_by_side(runs: Sequence[Path]) -> list[Table]:
    """The table; real and synthetic data apart.

    Raises:
        ResultError: a run has no report, or one of another version; a dataset is in one run under several settings, or in
            two runs that are of different ones or have all their methods in common.
    """
    found: dict[str, Parts] = {}
    for run in runs:
        rows = _rows(run)
        for data, dataset in dict.fromkeys(zip(rows["data"], rows["dataset"], strict=True)):
            parts = found.setdefault(data, {})
            own = rows[(rows["data"] == data) & (rows["dataset"] == dataset)]
            parts[dataset] = _joined(dataset, *parts[dataset], run, own) if dataset in parts else (run, own, [])
    return [_table(parts, data == "synthetic") for data, parts in sorted(found.items())]


def _joined(
    dataset: str, first: Path, rows: pd.DataFrame, notes: list[str], run: Path, others: pd.DataFrame
) -> tuple[Path, pd.DataFrame, list[str]]:
    """Rows of a dataset, and of another run those of methods that are not among them."""
    here, there = (_setting(one) for one in (rows, others))
    if differ := [f"{name} {here[name]} and {there[name]}" for name in here if here[name] != there[name]]:
        raise ResultError(
            f"{dataset} is in {first} and in {run}, which differ ({'; '.join(differ)}): give runs of one setting and one reference"
        )
    if here["accuracy of the reference"] is None:
        raise ResultError(f"{dataset} is in {first} and in {run}, which have no reference in common: give one of them")
    more = others[~others["method"].isin(rows["method"])]
    if more.empty:
        raise ResultError(f"{dataset} is in {first} and in {run}, which has no other methods: give one of them")
    names = ", ".join(dict.fromkeys(more["method"]))
    note = f"{dataset}: measured in another run, beside the same {more['reference'].iloc[0]} timed again: {names}."
    return first, pd.concat([rows, more]), [*notes, note]


def _setting(rows: pd.DataFrame) -> dict[str, Any]:
    """What runs must have in common to stand in one column; the reference's accuracy and training tell its weights and rows."""
    own = rows[rows["method"] == rows["reference"]]
    return {
        "test rows": _sizes(rows),
        **{name: ", ".join(map(str, rows[name].unique())) for name in SETTING},
        "accuracy of the reference": own["accuracy"].iloc[0] if len(own) else None,
        "training of the reference": own["train_flops"].iloc[0] if own["train_flops"].notna().any() else None,
    }


def _table(parts: Parts, synthetic: bool) -> Table:
    wide: dict[tuple[str, ...], dict[str, Any]] = {}
    carried: list[str] = []
    for dataset, (_, rows, _) in parts.items():
        for plain_record in rows.astype(object).where(rows.notna(), None).to_dict("records"):
            record = {str(key): value for key, value in plain_record.items()}
            row = wide.setdefault(
                tuple(record[name] for name in IDENTITY), {name: record[name] for name in ("kind", *IDENTITY)}
            )
            carried.append(record["marks"] or "")
            row.update({f"{dataset} {name}": record[name] for name in (*COSTS, *TESTED, *TRAINING, "marks")})
    kinds = ("method", "control", "bound")
    ordered: list[dict[str, Any]] = sorted(wide.values(), key=lambda one: kinds.index(one["kind"]))
    frame = pd.DataFrame(ordered).astype(object)
    frame = frame.where(frame.notna(), None)
    columns = [
        Column("method", "Method", method_name, numeric=False),
        Column("point", "Point", lambda row: row["point"], numeric=False),
        Column("training", "Training", lambda row: _times(row, parts), missing=f"{UNTRAINED}, or it was not counted"),
        *(column for dataset in parts for column in _columns(dataset)),
    ]
    numbers = [f"{dataset} {name}" for dataset in parts for name in (*COSTS, *TESTED, *TRAINING, "marks")]
    return Table(
        NAME + ("-synthetic" if synthetic else ""),
        "Every method on every dataset" + data_tag(synthetic),
        frame,
        columns,
        ("kind", *IDENTITY, *numbers),
        [*_notes(parts), *footnotes(pd.DataFrame({"marks": carried}))],
        split="kind",
    )


def _times(row: Row, parts: Parts) -> str:
    """FLOPs of training over those of the reference: one number, or the least and the most of the datasets."""
    ratios: list[Any] = [row.get(f"{dataset} train_ratio") for dataset in parts]
    ratios = [ratio for ratio in ratios if finite(ratio)]
    if not ratios:
        return DASH
    low, high = fixed(min(ratios)), fixed(max(ratios))
    return f"{low}×" if low == high else f"{low}–{high}×"


def _columns(dataset: str) -> list[Column]:
    def key(name: str) -> str:
        return f"{dataset} {name}"

    def accuracy(row: Row) -> str:
        low, high = row[key("accuracy_low")], row[key("accuracy_high")]
        text = percent(row[key("accuracy")])
        return text if text == DASH else marked(f"{text} ({span(low, high, percent)})", {"marks": row[key("marks")]})

    def difference(row: Row) -> str:
        text = points(row[key("difference")])
        return text if text == DASH else f"{text} ({p_value(row[key('p_holm')])})"

    why = "the method was not measured on this dataset at this point"
    return [
        Column(key("accuracy"), "accuracy % (95 %)", accuracy, missing=why, group=dataset),
        Column(key("mean_layers"), "layers", lambda row: fixed(row[key("mean_layers")]), missing=why, group=dataset),
        Column(key("speedup"), "speed-up", lambda row: times(row[key("speedup")]), missing=why, group=dataset),
        Column(
            key("difference"),
            "points (p adjusted)",
            difference,
            missing="not tested: the reference itself, a control or bound, or not measured at this point",
            group=dataset,
        ),
    ]


def _notes(parts: Parts) -> list[str]:
    names = sorted({str(name) for _, rows, _ in parts.values() for name in rows["reference"].dropna()})
    reference = " or ".join(names) or "a reference"
    each = [
        f"{dataset}: {_sizes(rows)} test rows, {rows['backbone'].iloc[0]}" for dataset, (_, rows, _) in parts.items()
    ]
    return [
        f"{'; '.join(each)}.",
        *(note for _, _, notes in parts.values() for note in notes),
        (
            f"Speed-up: wall time of {reference} over the method's, same rounds. Points: accuracy less "
            "that of the reference on the same test rows; p: exact McNemar test, adjusted (Holm) within its own run, where "
            "one family is one method over its points."
        ),
        (
            f"Training: FLOPs of the layers, forward and backward, over those of {reference}, from the least to the "
            "most of the datasets that have them, with the fine-tuning of the model that a method starts or learns from. "
            "Heads, general distillation, choosing thresholds and filling GEEP's table are not in it."
        ),
        "Between datasets backbone, training rows and machine may differ, between runs the machine; their own reports say which.",
    ]


def _sizes(rows: pd.DataFrame) -> str:
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return whole(low) if low == high else span(low, high, whole)


@exit_codes("side_by_side")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and print their Markdown; 2 with one line on bad input."""
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
