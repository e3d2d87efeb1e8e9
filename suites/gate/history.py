"""Plot accuracy, FLOPs and speed of every method over commits, from packed runs.

::

    python -m suites.gate.history kept/*.json --out history.svg --out history.csv

Files are read in the order given. The value of a method is the mean over the cells that all files have (geometric for ratios), so
that an added dataset moves no line. FLOPs ratio and speed-up are over the reference of the same run. A dotted line marks a change
of machine: accuracy and speed-up on its two sides are not comparable.

Colours: Okabe & Ito, "Color Universal Design" (2008); every method also has its own marker and line style.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError
from harness.core.files import write_text
from harness.core.names import csv_value
from harness.regression.matching import MACHINE, cell_differences
from harness.results.packed_run import PackedCell, PackedRun, load

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222324")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class HistoryPoint:
    """One method in one file: means over the cells that all files have; ratios are None without a reference."""

    number: int
    file: str
    run: str
    commit: str
    machine: str
    kind: str
    method: str
    cells: int
    accuracy: float
    flops_ratio: float | None
    speedup: float | None


_Key = tuple[Any, ...]


def _key(cell: PackedCell) -> _Key:
    return cell.synthetic, *(value for name, value in cell.cell if name not in MACHINE)


def _geometric(values: Sequence[float | None]) -> float | None:
    good = [log(value) for value in values if value is not None and value > 0]
    return exp(fmean(good)) if len(good) == len(values) and good else None


def _flops_ratio(run: PackedRun, cell: PackedCell) -> float | None:
    """Return linear FLOPs of the reference over those of the cell, in the same run with the same data, backbone and seed."""

    def data(one: PackedCell) -> tuple[Any, ...]:
        facts = one.cell
        return facts.dataset, facts.seed, one.synthetic, facts.source, facts.backbone, facts.protocol

    def nearness(one: PackedCell) -> tuple[Any, ...]:
        return one.cell.order == cell.cell.order, one.cell.batch_size == cell.cell.batch_size, one.mean_layers

    reference = cell.reference or "bert"
    found = [one for one in run.cells if one.cell.method == reference and data(one) == data(cell)]
    return max(found, key=nearness).flops_linear / cell.flops_linear if found else None


def entries(runs: Sequence[tuple[str, PackedRun]]) -> list[HistoryPoint]:
    """Return one point per file and method, in the order of the files.

    Args:
        runs: name and content of each file.

    Raises:
        ConfigError: the files have no cell in common, or none with the same test rows and settings.
    """
    by_key = [{_key(cell): cell for cell in run.cells} for _, run in runs]
    common = set.intersection(*map(set, by_key))
    if not common:
        raise ConfigError("these files have no cell in common: give packed runs of one profile")
    first = runs[0][1]
    unlike: dict[_Key, list[str]] = {
        key: words
        for key in common
        for (_, run), own in zip(runs, by_key, strict=True)
        if (words := cell_differences(first, run, by_key[0][key], own[key]))
    }
    common -= set(unlike)
    if not common:
        said = ", ".join(dict.fromkeys(word for words in unlike.values() for word in words))
        raise ConfigError(
            f"no cell of these files is the same in all of them, they differ in {said}: give runs that do not"
        )
    if unlike:
        print(f"{len(unlike)} cells are left out, because files differ in their test rows or settings", file=sys.stderr)
    found = []
    for number, ((file, run), own) in enumerate(zip(runs, by_key, strict=True), start=1):
        together: dict[str, list[PackedCell]] = {}
        for key, cell in own.items():
            if key in common:
                together.setdefault(cell.cell.method, []).append(cell)
        for method, cells in together.items():
            found.append(
                HistoryPoint(
                    number=number,
                    file=file,
                    run=run.name,
                    commit=", ".join(run.commits) or "unknown",
                    machine=" / ".join(dict.fromkeys(str(run.machine(cell)) for cell in cells)),
                    kind=cells[0].kind,
                    method=method,
                    cells=len(cells),
                    accuracy=fmean(cell.accuracy for cell in cells),
                    flops_ratio=_geometric([_flops_ratio(run, cell) for cell in cells]),
                    speedup=_geometric([cell.speedup for cell in cells]),
                )
            )
    return found


def to_csv(found: Sequence[HistoryPoint]) -> str:
    """Return all points as CSV, controls included."""
    rows = [{name: csv_value(value) for name, value in asdict(point).items()} for point in found]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def to_svg(found: Sequence[HistoryPoint], synthetic: bool) -> str:
    """Return three panels over commits with one line per method; controls and bounds are in the CSV only."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = [entry for entry in found if entry.kind == "method"] or list(found)
    methods = list(dict.fromkeys(entry.method for entry in shown))
    commits = {entry.number: entry.commit.split(",")[0][:9] for entry in found}
    machines = {entry.number: entry.machine for entry in found}
    moved = [number for number in machines if number > 1 and machines[number] != machines[number - 1]]
    panels = (
        ("accuracy, %", lambda entry: 100 * entry.accuracy),
        ("FLOPs (linear) of the reference / own", lambda entry: entry.flops_ratio),
        ("speed-up over the reference", lambda entry: entry.speedup),
    )
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "geep-bench", "text.parse_math": False, "font.size": 9}
    ):
        figure = Figure(figsize=(8, 9), layout="constrained")
        figure.suptitle("means over the cells that all commits have" + (", synthetic data" if synthetic else ""))
        for axes, (title, value) in zip(figure.subplots(len(panels), sharex=True), panels, strict=True):
            for index, method in enumerate(methods):
                points = [(e.number, y) for e in shown if e.method == method and (y := value(e)) is not None]
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle=LINES[index % len(LINES)],
                    label=method,
                )
            for number in moved:
                axes.axvline(number - 0.5, color="#6B6C6D", linestyle=":", linewidth=1)
            axes.set_ylabel(title)
            axes.grid(color="#D9DADB", linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
        axes.xaxis.set_major_formatter(lambda x, _: commits.get(round(x), "") if x == round(x) else "")
        axes.tick_params(axis="x", rotation=60)
        figure.get_axes()[0].legend(ncols=3, fontsize=8, frameon=False, loc="best")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


@exit_codes("history")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m suites.gate.history", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="packed runs or run folders, oldest first")
    parser.add_argument(
        "--out", type=Path, action="append", required=True, metavar="FILE", help=".svg or .csv; may be given twice"
    )
    args = parser.parse_args(arguments)
    if wrong := [path for path in args.out if path.suffix not in (".svg", ".csv")]:
        raise ConfigError(f"--out {wrong[0]} is neither .svg nor .csv")
    runs = [(path.stem, load(path)) for path in args.files]
    found = entries(runs)
    synthetic = any(cell.synthetic for _, run in runs for cell in run.cells)
    for path in args.out:
        text = to_csv(found) if path.suffix == ".csv" else to_svg(found, synthetic)
        write_text(path, text)
        print(f"{len(runs)} runs, {len({entry.method for entry in found})} methods: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
