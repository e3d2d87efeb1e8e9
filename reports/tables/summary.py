"""Which tables a report holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from reports.analysis import noise
from reports.analysis.cell_settings import SETTING
from reports.analysis.read_run import lost_note
from reports.analysis.view import Group, View
from reports.notation.marks import footnotes, marked
from reports.notation.numbers import DASH, finite, fixed, flops_unit, percent, plain, span, times, whole
from reports.tables.formats import Column, Row, Table

_HEADINGS = {
    "source": "Source",
    "backbone": "Backbone",
    "protocol": "Protocol",
    "order": "Order",
    "executor": "Executor",
    "batch_size": "Batch",
    "device": "Device",
    "dtype": "dtype",
    "compute": "Blocks run",
    "batch_tokens": "Tokens a batch",
}
NO_REFERENCE = "no reference method was measured in this run under the same conditions"
BOUND = "bound, not a method"
UNTRAINED = "nothing was trained for this row, or it uses the weights of another row"
IDENTITY = ("data", "language", "dataset", "kind", "method", "point", *SETTING, "seeds", "seed_list", "n")
_COSTS = ("flops_linear", "ratio_linear", "flops_full", "ratio_full", "mean_layers", "ratio_layers", "mean_heads")
_SPEEDS = (
    "samples_per_s",
    "samples_per_s_sd",
    "seconds",
    "rounds",
    "reference",
    "speedup",
    "speedup_sd",
    "speedup_p10",
    "speedup_p90",
)


def method_name(row: Row) -> str:
    """Method as shown: bounds say what they are, doubtful rows carry marks."""
    return marked(f"{row['method']} ({BOUND})" if row["kind"] == "bound" else str(row["method"]), row)


def setting_columns(view: View, skip: Sequence[str] = ()) -> list[Column]:
    """Coordinates that tell the rows of this run apart."""

    def column(name: str) -> Column:
        return Column(name, _HEADINGS[name], lambda row: str(row[name]), numeric=name == "batch_size")

    return [column(name) for name in view.varying if name not in skip]


def identity_columns(view: View, *, dataset: bool) -> list[Column]:
    first = [Column("dataset", "Dataset", lambda row: row["dataset"], numeric=False)] if dataset else []
    return [
        *first,
        Column("method", "Method", method_name, numeric=False),
        Column("point", "Point", lambda row: row["point"], numeric=False),
        *setting_columns(view),
    ]


def _result_columns(view: View, frame: pd.DataFrame) -> list[Column]:
    """The numbers of the summary."""
    linear, linear_unit = flops_unit(frame["flops_linear"].max())
    full, full_unit = flops_unit(frame["flops_full"].max())
    columns = [Column("accuracy", "Accuracy % (95 % interval)", _accuracy)]
    if view.rows["seeds"].max() > 1:
        columns.append(Column("accuracy_sd", "± (seeds; 95 % of their mean)", _over_seeds, missing="one seed only"))

    def cost(kind: str, divisor: float) -> Callable[[Row], str]:
        return lambda r: f"{plain(r[f'flops_{kind}'] / divisor)} ({times(r[f'ratio_{kind}'])})"

    return columns + [
        Column("flops_linear", f"{linear_unit}FLOPs linear (ratio)", cost("linear", linear)),
        Column("flops_full", f"{full_unit}FLOPs full (ratio)", cost("full", full)),
        Column("mean_layers", "Mean layers", lambda r: fixed(r["mean_layers"])),
        Column("mean_heads", "Heads a sample", lambda r: fixed(r["mean_heads"])),
        Column("samples_per_s", "Samples/s", lambda r: plain(r["samples_per_s"])),
        Column("speedup", "Speed-up (p10–p90)", _speedup, missing=NO_REFERENCE),
        noise_column(),
    ]


def noise_column() -> Column:
    """The A/A band, to be shown beside every ratio of times."""
    return Column("noise_high", "A/A noise", lambda r: noise.show(r["noise"]), missing=noise.WHY_MISSING)


def _accuracy(row: Row) -> str:
    return f"{percent(row['accuracy'])} ({span(row['accuracy_low'], row['accuracy_high'], percent)})"


def _over_seeds(row: Row) -> str:
    limits = span(row["accuracy_seeds_low"], row["accuracy_seeds_high"], percent)
    return f"{percent(row['accuracy_sd'], 2)} ({row['seeds']}; {limits})"


def _speedup(row: Row) -> str:
    if not finite(row["speedup"]):
        return DASH
    return f"{times(row['speedup'])} ({span(row['speedup_p10'], row['speedup_p90'])})"


def reference_names(frame: pd.DataFrame) -> str:
    """Names of the references of these rows, for captions."""
    names = sorted({str(name) for name in frame["ratio_reference"] if isinstance(name, str)})
    return " and ".join(names) or "none"


def noise_notes(frame: pd.DataFrame) -> list[str]:
    """What the A/A band of these rows is."""
    bands = dict.fromkeys((r["label"], r["noise"]) for r in frame.to_dict("records") if r["noise"] is not None)
    if not bands:
        return []
    pairs = [band.pairs for _, band in bands]
    count = whole(pairs[0]) if len(set(pairs)) == 1 else f"{whole(min(pairs))} to {whole(max(pairs))}"
    return [
        (
            f"A/A noise: 10th to 90th percentile of the reference over itself in neighbouring rounds ({count} pairs, cells of a "
            "dataset pooled, both directions). A ratio inside it tells nothing apart."
        )
    ]


def _result_notes(frame: pd.DataFrame) -> list[str]:
    notes = [
        (
            f"FLOPs per sample, as run. Ratios and speed-up: {reference_names(frame)} of the same run over the row; "
            "speed-up  is wall time, median over rounds."
        )
    ]
    if frame["seeds"].max() > 1:
        seeds = sorted({int(count) for count in frame["seeds"]})
        notes.append(
            f"Means over {' or '.join(map(str, seeds))} seeds; ± is the standard deviation over them, with Student's 95 % interval "
            "of their mean (training varies; test rows are shared); the interval beside the accuracy is the mean of the seeds' "
            "intervals, p10–p90 the widest over the seeds."
        )
    notes += noise_notes(frame)
    if frame["ratio_linear"].isna().any():
        notes.append(f"{DASH} in brackets: {NO_REFERENCE}.")
    return notes + footnotes(frame)


def data_tag(synthetic: bool) -> str:
    return " (synthetic data)" if synthetic else ""


def summary_tables(view: View) -> list[Table]:
    """Method x dataset; real and synthetic data apart."""
    tables = []
    for synthetic in (False, True):
        frame = view.rows[view.rows["synthetic"] == synthetic]
        if len(frame):
            columns = [*identity_columns(view, dataset=True), *_result_columns(view, frame)]
            mine = [group for group in view.groups if group.synthetic == synthetic]
            lost = [f"{group.dataset} {cell}" for group in mine for cell in view.lost_of(group)]
            tables.append(
                Table(
                    "summary-synthetic" if synthetic else "summary",
                    f"Accuracy, cost and speed of every method{data_tag(synthetic)}",
                    frame,
                    columns,
                    csv_columns(),
                    _result_notes(frame) + lost_note(lost),
                    split="label",
                )
            )
    return tables


def csv_columns() -> tuple[str, ...]:
    """Raw columns of the tables of results."""
    quality = (
        "accuracy",
        "accuracy_sd",
        "accuracy_seeds_low",
        "accuracy_seeds_high",
        "accuracy_low",
        "accuracy_high",
        "macro_f1",
    )
    rest = (
        "kept",
        "params",
        "depth",
        "valid_token_ratio",
        "peak_memory_bytes",
        "train_seconds",
        "passes_ratio",
        "dev_accuracy",
    )
    return (*IDENTITY, *quality, *_COSTS, *_SPEEDS, "noise_high", *rest, "rounds_agree", "marks")


def caption(text: str, group: Group) -> str:
    """What a table of one dataset is about, with what all its rows share."""
    return f"{text}: {group.label}; {group.facts}"


def results_table(view: View, group: Group) -> Table:
    """All measured numbers of one dataset."""
    frame = view.of(group)
    columns = [*identity_columns(view, dataset=False), *_result_columns(view, frame)]
    return Table(
        f"results-{group.slug}",
        caption("Results", group),
        frame,
        columns,
        csv_columns(),
        _result_notes(frame) + lost_note(view.lost_of(group)),
        split="kind",
    )


def details_table(view: View, group: Group) -> Table:
    """What lies behind the results of one dataset: test rows, training, rounds."""
    frame = view.of(group)
    columns = [
        *identity_columns(view, dataset=False),
        Column("n", "Test samples", lambda r: whole(r["n"])),
        Column("macro_f1", "Macro F1 %", lambda r: percent(r["macro_f1"])),
        Column("dev_accuracy", "Dev accuracy %", lambda r: percent(r["dev_accuracy"]), missing=UNTRAINED),
        Column("valid_token_ratio", "Valid tokens %", lambda r: percent(r["valid_token_ratio"])),
        Column("passes_ratio", "Layer passes vs fine-tuning", lambda r: times(r["passes_ratio"]), missing=UNTRAINED),
        Column("rounds", "Rounds", lambda r: whole(r["rounds"])),
        Column("rounds_agree", "Rounds agree %", lambda r: percent(r["rounds_agree"], 2)),
        *(
            []
            if "executor" in view.varying
            else [Column("executor", "Executor", lambda r: str(r["executor"]), numeric=False)]
        ),
    ]
    return Table(
        f"details-{group.slug}",
        caption("Behind the results", group),
        frame,
        columns,
        csv_columns(),
        footnotes(frame),
        split="kind",
    )


def difficulty_table(view: View, group: Group) -> Table | None:
    """Accuracy and mean exit layer per true difficulty; None where it is not known."""
    long = view.of(group, "difficulty")
    if not len(long):
        return None
    levels = sorted({int(level) for level in long["difficulty"]})
    keys = ["label", "dataset", "data", "kind", "method", "point", *SETTING, "marks"]
    wide: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in long.to_dict("records"):
        row = wide.setdefault(tuple(record[key] for key in keys), {key: record[key] for key in keys})
        for name in ("n", "accuracy", "exit_layer"):
            row[f"{name}_{record['difficulty']}"] = record[name]
    frame = pd.DataFrame(list(wide.values()))

    def columns(level: int) -> list[Column]:
        why, group = "no test sample of this difficulty", f"Difficulty {level}"
        return [
            Column(
                f"accuracy_{level}", "accuracy %", lambda r: percent(r[f"accuracy_{level}"]), missing=why, group=group
            ),
            Column(
                f"exit_layer_{level}", "exit layer", lambda r: fixed(r[f"exit_layer_{level}"]), missing=why, group=group
            ),
        ]

    counts = [f"{level}: {int(long.loc[long['difficulty'] == level, 'n'].max())}" for level in levels]
    notes = [
        f"True difficulty of each generated sample, {levels[0]} the easiest. Samples of each: {', '.join(counts)}."
    ]
    return Table(
        f"difficulty-{group.slug}",
        caption("By true difficulty", group),
        frame,
        [*identity_columns(view, dataset=False), *(column for level in levels for column in columns(level))],
        (*keys, *(f"{name}_{level}" for level in levels for name in ("n", "accuracy", "exit_layer"))),
        notes + footnotes(frame),
        split="kind",
    )
