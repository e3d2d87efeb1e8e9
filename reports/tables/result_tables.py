"""Accuracy, cost and speed of every method: the summary, its variants and curves; of each dataset the results, what lies
behind them, and difficulty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reports.analysis.cell_settings import ROW_SETTING
from reports.analysis.curves import Curve
from reports.analysis.result_rows import ResultRow
from reports.analysis.run_contents import VariantRow, lost_note
from reports.analysis.view import DifficultyRow, Group, Level, View, by_data, of_group
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import (
    DASH,
    finite,
    fixed,
    flops_unit,
    percent,
    percent2,
    plain,
    points2,
    span,
    times,
    whole,
)
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable, RunTables
from reports.tables.shared_columns import (
    DATASET,
    IDENTITY,
    METHOD,
    NO_REFERENCE,
    NOISE,
    UNTIMED,
    UNTRAINED,
    dataset_table,
    from_text_column,
    from_text_note,
    identity_columns,
    noise_notes,
    reference_names,
    run_table,
    setting_columns,
    why_no_speedup,
)

NO_LAYERS = "the model has no Transformer layers"
_NO_EPOCH = "the last epoch is kept by rule, or nothing was trained for this row"
_UNRECORDED = f"{UNTRAINED}, or an older version did not record it"
_DEV_SCORE = (
    "Dev score: what epochs are chosen by; for early exits, the area under accuracy over layers, else the accuracy."
)
# Raw columns of these tables.
CSV = (
    *IDENTITY,
    *("accuracy", "accuracy_sd", "accuracy_seeds_low", "accuracy_seeds_high", "accuracy_low", "accuracy_high"),
    "macro_f1",
    "calibration_error",
    *("flops_linear", "ratio_linear", "flops_full", "ratio_full", "mean_layers", "ratio_layers", "mean_heads"),
    "answered_before",
    *("timed", "samples_per_s", "samples_per_s_sd", "samples_per_s_from_text", "seconds", "rounds", "reference"),
    *("speedup", "speedup_sd", "speedup_p10", "speedup_p90", "noise_high"),
    *("kept", "params", "depth", "valid_token_ratio", "peak_memory_bytes", "train_seconds", "steps", "passes_ratio"),
    *("kept_epoch", "trained_in", "fit_threads", "threads", "dev_accuracy", "rounds_agree", "marks"),
)


def _result_columns(view: View, rows: Sequence[ResultRow]) -> list[Column[ResultRow]]:
    linear, linear_unit = flops_unit(max((row.flops_linear or 0.0 for row in rows), default=0.0))
    full, full_unit = flops_unit(max((row.flops_full or 0.0 for row in rows), default=0.0))
    none = f"every sample runs at least one layer, or {NO_LAYERS}"
    before = [Column[ResultRow]("answered_before", "Before layer 1 %", missing=none, form=percent)]
    unknown = "measured before results had it, and without per-sample rows"
    calibration = [Column[ResultRow]("calibration_error", "ECE %", missing=unknown, form=percent)]
    timed = [Column[ResultRow]("timed", "Seeds timed", lambda row: f"{row.timed} of {row.seeds}")]
    seeds = [Column("accuracy_sd", "± (seeds; 95 % of their mean)", _over_seeds, missing="one seed only")]

    def cost(flops: float | None, divisor: float, ratio: float | None) -> str:
        return f"{plain(flops / divisor if finite(flops) else None)} ({times(ratio)})"

    return [
        Column("accuracy", "Accuracy % (95 % interval)", _accuracy),
        *(seeds if max(row.seeds for row in view.rows) > 1 else []),
        *(calibration if any(finite(row.calibration_error) for row in rows) else []),
        Column("steps", "Training steps", missing=UNTRAINED, form=whole),
        Column(
            "flops_linear",
            f"{linear_unit}FLOPs linear (ratio)",
            lambda row: cost(row.flops_linear, linear, row.ratio_linear),
        ),
        Column("flops_full", f"{full_unit}FLOPs full (ratio)", lambda row: cost(row.flops_full, full, row.ratio_full)),
        Column("mean_layers", "Mean layers", missing=NO_LAYERS, form=fixed),
        *(before if any(row.answered_before for row in view.rows) else []),
        Column("mean_heads", "Heads a sample", missing=NO_LAYERS, form=fixed),
        *(timed if any(row.timed != row.seeds for row in rows) else []),
        Column("samples_per_s", "Samples/s", missing=UNTIMED, form=plain),
        *from_text_column(rows),
        Column("speedup", "Speed-up (p10–p90)", _speedup, missing=why_no_speedup(rows)),
        NOISE,
    ]


def _accuracy(row: ResultRow) -> str:
    return f"{percent(row.accuracy)} ({span(row.accuracy_low, row.accuracy_high, percent)})"


def _over_seeds(row: ResultRow) -> str:
    limits = span(row.accuracy_seeds_low, row.accuracy_seeds_high, percent)
    return f"{percent(row.accuracy_sd, 2)} ({row.seeds}; {limits})"


def _speedup(row: ResultRow) -> str:
    return f"{times(row.speedup)} ({span(row.speedup_p10, row.speedup_p90)})" if finite(row.speedup) else DASH


def _result_notes(rows: Sequence[ResultRow]) -> list[str]:
    notes = [
        f"FLOPs per sample, as executed. Ratios and speed-up: {reference_names(rows)} of the same run over the row; "
        "speed-up is wall time, median over rounds."
    ]
    if any(finite(row.calibration_error) for row in rows):
        notes.append(
            "ECE: expected calibration error of the softmax probability of the answer, 15 bins (Guo et al., ICML 2017), test rows; "
            "lower is better, and chance alone gives about 2 % on 1,000 rows."
        )
    seeds = sorted({row.seeds for row in rows})
    if max(seeds) > 1:
        notes.append(
            f"Means over {' or '.join(map(str, seeds))} seeds; ± is the standard deviation over them, with Student's 95 % interval "
            "of their mean (training varies; test rows are shared); the interval beside the accuracy is the mean of the seeds' "
            "intervals, p10–p90 the widest over the seeds."
        )
    if any(row.timed not in (0, row.seeds) for row in rows):
        notes.append("Times are means over the seeds that were timed; everything else is a mean over all seeds.")
    notes += [*from_text_note(rows), *noise_notes(rows)]
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
    executor: list[Column[ResultRow]] = [Column("executor", "Executor", numeric=False)]
    columns = [
        *identity_columns(view),
        Column("n", "Test samples", form=whole),
        Column("macro_f1", "Macro F1 %", form=percent),
        Column("dev_accuracy", "Dev score %", missing=UNTRAINED, form=percent),
        Column("valid_token_ratio", "Valid tokens %", form=percent),
        Column("steps", "Training steps", missing=UNTRAINED, form=whole),
        Column("kept_epoch", "Epoch kept", lambda row: row.kept_epoch or DASH, numeric=False, missing=_NO_EPOCH),
        Column("trained_in", "Trained in", lambda row: row.trained_in or DASH, numeric=False, missing=_UNRECORDED),
        Column("fit_threads", "Threads a fit", lambda row: row.fit_threads or DASH, missing=_UNRECORDED),
        Column("passes_ratio", "Layer passes vs fine-tuning", missing=f"{UNTRAINED}, or {NO_LAYERS}", form=times),
        Column("rounds", "Rounds", missing=UNTIMED, form=whole),
        Column("rounds_agree", "Rounds agree %", missing="not checked: a single pass", form=percent2),
        *([] if "executor" in view.varying else executor),
    ]
    return dataset_table("details", "Behind the results", group, rows, columns, CSV, [_DEV_SCORE])


def difficulty_table(view: View, group: Group) -> Table[DifficultyRow] | None:
    """Return accuracy and mean exit layer per true difficulty; None where it is not known."""
    rows = of_group(view.difficulty, group)
    if not rows:
        return None
    levels = sorted({level for row in rows for level in row.levels})

    def value(level: int, name: str) -> Callable[[DifficultyRow], object]:
        return lambda row: getattr(row.levels[level], name) if level in row.levels else None

    why = "no test sample of this difficulty"
    columns: list[Column[DifficultyRow]] = [*identity_columns(view)]
    for level in levels:
        above = f"Difficulty {level}"
        columns.append(Column(f"accuracy_{level}", "accuracy %", missing=why, group=above, form=percent))
        columns.append(Column(f"exit_layer_{level}", "exit layer", missing=why, group=above, form=fixed))
    values = {f"{name}_{level}": value(level, name) for level in levels for name in Level._fields}
    counts = [f"{level}: {max(row.levels[level].n for row in rows if level in row.levels)}" for level in levels]
    note = (
        f"True difficulty of each generated sample, {levels[0]} is the easiest. Samples of each: {', '.join(counts)}."
    )
    csv = ("label", "dataset", "data", "kind", "method", "point", *ROW_SETTING, "marks", *values)
    return dataset_table(
        "difficulty", "By true difficulty", group, rows, columns, csv, [note], lowest=False, values=values
    )


def variants_tables(view: View) -> list[Table[VariantRow]]:
    """Return one table with a row per variant; none where all rows are methods as they are registered."""
    if not view.variants:
        return []
    columns: list[Column[VariantRow]] = [
        Column("method", "Variant", numeric=False),
        Column("like", "Like", numeric=False),
        Column("settings", "Its own settings", lambda row: row.settings or DASH, numeric=False),
        Column("needs", "Learns from", lambda row: row.needs or f"as {row.like}", numeric=False),
    ]
    return [
        Table(
            f"variants{file_tag(view.synthetic)}",
            "Variants: methods with settings of their own" + data_tag(all(group.synthetic for group in view.groups)),
            view.variants,
            columns,
            tuple(column.key for column in columns),
            ["All other settings are those of the method that a variant is like; run.json lists them."],
        )
    ]


HEADING = "Curves of accuracy against FLOPs: area, and score at matched cost"


def curve_tables(view: View) -> list[Table[Curve]]:
    """Return area and score of every curve; real and synthetic data apart."""
    return [_curve_table(view, synthetic, curves) for synthetic, curves in by_data(view.curves)]


def _curve_table(view: View, synthetic: bool, curves: list[Curve]) -> Table[Curve]:
    divisor, unit = flops_unit(max(curve.budget_high for curve in curves))
    baseline = " or ".join(sorted({curve.baseline for curve in curves if curve.baseline})) or "constant depth"
    unbought = "no budget below the highest buys a point"
    unscored = (
        "no control of constant depth under the same conditions, or every point is cheaper than all of its points"
    )

    def over(low: float, high: float) -> str:
        return span(low / divisor, high / divisor)

    columns: list[Column[Curve]] = [
        *(DATASET, METHOD),
        Column("variant", "Variant", lambda row: row.variant or DASH, numeric=False, missing="points without one"),
        *setting_columns(view),
        Column("points", "Points", form=whole),
        Column("cost_low", f"{unit}FLOPs linear", lambda row: over(row.cost_low, row.cost_high)),
        Column("budget_high", f"Budgets, {unit}FLOPs", lambda row: over(row.budget_low, row.budget_high)),
        Column("area", "Area %", missing=unbought, form=percent2),
        Column("score", f"Score against {baseline}, points", missing=unscored, form=points2),
        Column("score_used", "Points scored", lambda row: f"{whole(row.score_used)} of {whole(row.points)}"),
    ]
    notes = [
        "Area: mean over budgets, on a logarithmic scale, of the best accuracy within the budget; 0 where the budget buys no "
        "point, so that a method with one expensive point has a small area. Budgets are those of the dataset: compare areas within "
        "a dataset only.",
        f"Score (ELUE, Liu et al., NAACL 2022): mean over points of accuracy less that of {baseline} at the same FLOPs, on "
        "straight lines between its points. A more expensive point is compared with its most expensive one, a cheaper point is "
        "not scored.",
    ]
    csv = (
        *("data", "dataset", "kind", "method", "variant", *view.varying, "points", "cost_low", "cost_high"),
        *("budget_low", "budget_high", "area", "score", "score_used", "marks"),
    )
    return run_table("curves", HEADING, synthetic, curves, columns, csv, notes, lowest=False)


TABLES = (
    RunTables("summary", "summary", 10, summary_tables),
    RunTables("variants", "summary", 20, variants_tables),
    RunTables("curves", "controls", 40, curve_tables, HEADING),
    DatasetTable("difficulty", 30, "Accuracy and exit layer by true difficulty", difficulty_table),
    DatasetTable("results", 60, "All results of {label}", results_table, in_markdown=False),
    DatasetTable("details", 70, "Behind the results: test rows, training, rounds", details_table),
)
