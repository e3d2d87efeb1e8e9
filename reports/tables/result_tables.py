"""Accuracy, cost and speed of every method: the summary, the results of each dataset, what lies behind them, and difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.analysis.cell_settings import SETTING
from reports.analysis.result_rows import ResultRow
from reports.analysis.run_contents import lost_note
from reports.analysis.view import DifficultyRow, Group, Level, View, by_data, of_group
from reports.notation.numbers import DASH, finite, fixed, flops_unit, percent, plain, span, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable, RunTables
from reports.tables.shared_columns import (
    DATASET,
    IDENTITY,
    NO_REFERENCE,
    NOISE,
    UNTRAINED,
    dataset_table,
    identity_columns,
    noise_notes,
    reference_names,
    run_table,
)

# Raw columns of these tables.
CSV = (
    *IDENTITY,
    *(
        "accuracy",
        "accuracy_sd",
        "accuracy_seeds_low",
        "accuracy_seeds_high",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
    ),
    *("flops_linear", "ratio_linear", "flops_full", "ratio_full", "mean_layers", "ratio_layers", "mean_heads"),
    *("samples_per_s", "samples_per_s_sd", "seconds", "rounds", "reference"),
    *("speedup", "speedup_sd", "speedup_p10", "speedup_p90", "noise_high"),
    *("kept", "params", "depth", "valid_token_ratio", "peak_memory_bytes", "train_seconds", "passes_ratio"),
    *("dev_accuracy", "rounds_agree", "marks"),
)


def _result_columns(view: View, rows: Sequence[ResultRow]) -> list[Column[ResultRow]]:
    linear, linear_unit = flops_unit(max((row.flops_linear or 0.0 for row in rows), default=0.0))
    full, full_unit = flops_unit(max((row.flops_full or 0.0 for row in rows), default=0.0))
    seeds = [Column("accuracy_sd", "± (seeds; 95 % of their mean)", _over_seeds, missing="one seed only")]
    return [
        Column("accuracy", "Accuracy % (95 % interval)", _accuracy),
        *(seeds if max(row.seeds for row in view.rows) > 1 else []),
        Column(
            "flops_linear",
            f"{linear_unit}FLOPs linear (ratio)",
            lambda row: _cost(row.flops_linear, linear, row.ratio_linear),
        ),
        Column("flops_full", f"{full_unit}FLOPs full (ratio)", lambda row: _cost(row.flops_full, full, row.ratio_full)),
        Column("mean_layers", "Mean layers", lambda row: fixed(row.mean_layers)),
        Column("mean_heads", "Heads a sample", lambda row: fixed(row.mean_heads)),
        Column("samples_per_s", "Samples/s", lambda row: plain(row.samples_per_s)),
        Column("speedup", "Speed-up (p10–p90)", _speedup, missing=NO_REFERENCE),
        NOISE,
    ]


def _accuracy(row: ResultRow) -> str:
    return f"{percent(row.accuracy)} ({span(row.accuracy_low, row.accuracy_high, percent)})"


def _over_seeds(row: ResultRow) -> str:
    limits = span(row.accuracy_seeds_low, row.accuracy_seeds_high, percent)
    return f"{percent(row.accuracy_sd, 2)} ({row.seeds}; {limits})"


def _cost(flops: float | None, divisor: float, ratio: float | None) -> str:
    return f"{plain(flops / divisor if finite(flops) else None)} ({times(ratio)})"


def _speedup(row: ResultRow) -> str:
    return f"{times(row.speedup)} ({span(row.speedup_p10, row.speedup_p90)})" if finite(row.speedup) else DASH


def _result_notes(rows: Sequence[ResultRow]) -> list[str]:
    notes = [
        f"FLOPs per sample, as executed. Ratios and speed-up: {reference_names(rows)} of the same run over the row; "
        "speed-up is wall time, median over rounds."
    ]
    seeds = sorted({row.seeds for row in rows})
    if max(seeds) > 1:
        notes.append(
            f"Means over {' or '.join(map(str, seeds))} seeds; ± is the standard deviation over them, with Student's 95 % interval "
            "of their mean (training varies; test rows are shared); the interval beside the accuracy is the mean of the seeds' "
            "intervals, p10–p90 the widest over the seeds."
        )
    notes += noise_notes(rows)
    if any(row.ratio_linear is None for row in rows):
        notes.append(f"{DASH} in brackets: {NO_REFERENCE}.")
    return notes


def summary_tables(view: View) -> list[Table[ResultRow]]:
    """Return all methods on all datasets; real and synthetic data apart."""
    tables = []
    for synthetic, rows in by_data(view.rows):
        groups = [group for group in view.groups if group.synthetic == synthetic]
        lost = [f"{group.dataset} {cell}" for group in groups for cell in view.lost_of(group)]
        columns = [DATASET, *identity_columns(view), *_result_columns(view, rows)]
        notes = _result_notes(rows) + lost_note(lost)
        tables.append(
            run_table("summary", "Accuracy, cost and speed of every method", synthetic, rows, columns, CSV, notes)
        )
    return tables


def results_table(view: View, group: Group) -> Table[ResultRow]:
    """Return all measured numbers of one dataset."""
    rows = view.of(group)
    columns = [*identity_columns(view), *_result_columns(view, rows)]
    notes = _result_notes(rows) + lost_note(view.lost_of(group))
    return dataset_table("results", "Results", group, rows, columns, CSV, notes)


def details_table(view: View, group: Group) -> Table[ResultRow]:
    """Return what lies behind the results of one dataset: test rows, training, rounds."""
    rows = view.of(group)
    executor: list[Column[ResultRow]] = [Column("executor", "Executor", lambda row: row.executor, numeric=False)]
    columns = [
        *identity_columns(view),
        Column("n", "Test samples", lambda row: whole(row.n)),
        Column("macro_f1", "Macro F1 %", lambda row: percent(row.macro_f1)),
        Column("dev_accuracy", "Dev accuracy %", lambda row: percent(row.dev_accuracy), missing=UNTRAINED),
        Column("valid_token_ratio", "Valid tokens %", lambda row: percent(row.valid_token_ratio)),
        Column("passes_ratio", "Layer passes vs fine-tuning", lambda row: times(row.passes_ratio), missing=UNTRAINED),
        Column("rounds", "Rounds", lambda row: whole(row.rounds)),
        Column("rounds_agree", "Rounds agree %", lambda row: percent(row.rounds_agree, 2)),
        *([] if "executor" in view.varying else executor),
    ]
    return dataset_table("details", "Behind the results", group, rows, columns, CSV)


def difficulty_table(view: View, group: Group) -> Table[DifficultyRow] | None:
    """Return accuracy and mean exit layer per true difficulty; None where it is not known."""
    rows = of_group(view.difficulty, group)
    if not rows:
        return None
    levels = sorted({level for row in rows for level in row.levels})

    def value(level: int, name: str) -> Callable[[DifficultyRow], object]:
        return lambda row: getattr(row.levels[level], name) if level in row.levels else None

    def column(level: int, name: str, label: str, show: Callable[[object], str]) -> Column[DifficultyRow]:
        of_level, why = value(level, name), "no test sample of this difficulty"
        above = f"Difficulty {level}"
        return Column(f"{name}_{level}", label, lambda row: show(of_level(row)), missing=why, group=above)

    columns: list[Column[DifficultyRow]] = [*identity_columns(view)]
    for level in levels:
        columns.append(column(level, "accuracy", "accuracy %", percent))
        columns.append(column(level, "exit_layer", "exit layer", fixed))
    values = {f"{name}_{level}": value(level, name) for level in levels for name in Level._fields}
    counts = [f"{level}: {max(row.levels[level].n for row in rows if level in row.levels)}" for level in levels]
    note = (
        f"True difficulty of each generated sample, {levels[0]} is the easiest. Samples of each: {', '.join(counts)}."
    )
    csv = ("label", "dataset", "data", "kind", "method", "point", *SETTING, "marks", *values)
    return dataset_table(
        "difficulty", "By true difficulty", group, rows, columns, csv, [note], lowest=False, values=values
    )


TABLES = (
    RunTables("summary", "summary", 10, summary_tables),
    DatasetTable("difficulty", 30, "Accuracy and exit layer by true difficulty", difficulty_table),
    DatasetTable("results", 60, "All results of {label}", results_table, in_markdown=False),
    DatasetTable("details", 70, "Behind the results: test rows, training, rounds", details_table),
)
