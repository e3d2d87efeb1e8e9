"""Which tables a report holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from reports.coordinates import SETTING
from reports.numbers import DASH, finite, fixed, flops_unit, percent, plain, span, times, whole
from reports.tables import Column, Row, Table
from reports.view import Group, View

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
_IDENTITY = ("data", "language", "dataset", "kind", "method", "point", *SETTING, "seeds", "seed_list", "n")
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
    """Method as shown: bounds say what they are, doubtful rows carry a dagger."""
    name = f"{row['method']} ({BOUND})" if row["kind"] == "bound" else str(row["method"])
    return f"{name} †" if row.get("rounds_agree", 1.0) < 1 else name


def setting_columns(view: View, skip: Sequence[str] = ()) -> list[Column]:
    """Coordinates that tell the rows of this run apart."""

    def column(name: str) -> Column:
        return Column(name, _HEADINGS[name], lambda row: str(row[name]), numeric=name == "batch_size")

    return [column(name) for name in view.varying if name not in skip]


def _identity(view: View, *, dataset: bool) -> list[Column]:
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
        columns.append(Column("accuracy_sd", "± (seeds)", _over_seeds, missing="one seed only"))

    def cost(kind: str, divisor: float) -> Callable[[Row], str]:
        return lambda r: f"{plain(r[f'flops_{kind}'] / divisor)} ({times(r[f'ratio_{kind}'])})"

    return columns + [
        Column("flops_linear", f"{linear_unit}FLOPs linear (ratio)", cost("linear", linear)),
        Column("flops_full", f"{full_unit}FLOPs full (ratio)", cost("full", full)),
        Column("mean_layers", "Mean layers", lambda r: fixed(r["mean_layers"])),
        Column("mean_heads", "Heads a sample", lambda r: fixed(r["mean_heads"])),
        Column("samples_per_s", "Samples/s", lambda r: plain(r["samples_per_s"])),
        Column("speedup", "Speed-up (p10–p90)", _speedup, missing=NO_REFERENCE),
    ]


def _accuracy(row: Row) -> str:
    return f"{percent(row['accuracy'])} ({span(row['accuracy_low'], row['accuracy_high'], percent)})"


def _over_seeds(row: Row) -> str:
    return f"{percent(row['accuracy_sd'], 2)} ({row['seeds']})"


def _speedup(row: Row) -> str:
    if not finite(row["speedup"]):
        return DASH
    return f"{times(row['speedup'])} ({span(row['speedup_p10'], row['speedup_p90'])})"


def reference_names(frame: pd.DataFrame) -> str:
    """Names of the references of these rows, for captions."""
    names = sorted({str(name) for name in frame["ratio_reference"] if isinstance(name, str)})
    return " and ".join(names) or "none"


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
            f"Means over {' or '.join(map(str, seeds))} seeds; ± is the standard deviation over them, the interval the "
            "mean of the seeds' intervals, p10–p90 the widest over the seeds."
        )
    if frame["ratio_linear"].isna().any():
        notes.append(f"{DASH} in brackets: {NO_REFERENCE}.")
    return notes + _marks(frame)


def _marks(frame: pd.DataFrame) -> list[str]:
    if "rounds_agree" in frame and (frame["rounds_agree"] < 1).any():
        return [
            (
                "† Labels changed between rounds, whose sample order differs (lowest agreement "
                f"{percent(frame['rounds_agree'].min(), 2)} %): the answer of a sample depends on its neighbours."
            )
        ]
    return []


def data_tag(synthetic: bool) -> str:
    return " (synthetic data)" if synthetic else ""


def summary_tables(view: View) -> list[Table]:
    """Method x dataset; real and synthetic data apart."""
    tables = []
    for synthetic in (False, True):
        frame = view.rows[view.rows["synthetic"] == synthetic]
        if len(frame):
            columns = [*_identity(view, dataset=True), *_result_columns(view, frame)]
            tables.append(
                Table(
                    "summary-synthetic" if synthetic else "summary",
                    f"Accuracy, cost and speed of every method{data_tag(synthetic)}",
                    frame,
                    columns,
                    _csv(),
                    _result_notes(frame),
                    split="label",
                )
            )
    return tables


def _csv() -> tuple[str, ...]:
    quality = ("accuracy", "accuracy_sd", "accuracy_low", "accuracy_high", "macro_f1")
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
    return (*_IDENTITY, *quality, *_COSTS, *_SPEEDS, *rest, "rounds_agree")


def _caption(text: str, group: Group) -> str:
    return f"{text}: {group.label}; {group.facts}"


def results_table(view: View, group: Group) -> Table:
    """All measured numbers of one dataset."""
    frame = view.of(group)
    columns = [*_identity(view, dataset=False), *_result_columns(view, frame)]
    return Table(
        f"results-{group.slug}", _caption("Results", group), frame, columns, _csv(), _result_notes(frame), split="kind"
    )


def details_table(view: View, group: Group) -> Table:
    """What lies behind the results of one dataset: size, memory, training, checks."""
    frame = view.of(group)
    untrained = "nothing was trained for this row, or it uses the weights of another row"
    columns = [
        *_identity(view, dataset=False),
        Column("n", "Test samples", lambda r: whole(r["n"])),
        Column("macro_f1", "Macro F1 %", lambda r: percent(r["macro_f1"])),
        Column("dev_accuracy", "Dev accuracy %", lambda r: percent(r["dev_accuracy"]), missing=untrained),
        Column("params", "Parameters M", lambda r: plain(r["params"] / 1e6)),
        Column("valid_token_ratio", "Valid tokens %", lambda r: percent(r["valid_token_ratio"])),
        Column(
            "peak_memory_bytes", "Peak memory MiB", lambda r: plain(_mib(r)), missing="the device does not report it"
        ),
        Column("train_seconds", "Training s", lambda r: plain(r["train_seconds"]), missing=untrained),
        Column("passes_ratio", "Layer passes vs fine-tuning", lambda r: times(r["passes_ratio"]), missing=untrained),
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
        _caption("Behind the results", group),
        frame,
        columns,
        _csv(),
        _marks(frame),
        split="kind",
    )


def _mib(row: Row) -> Any:
    value = row["peak_memory_bytes"]
    return value / 2**20 if value is not None else None


def anatomy_table(view: View, group: Group) -> Table:
    """The speed-up taken apart: layers, FLOPs, wall time, and the parts of a pass."""
    frame = view.of(group)
    frame = frame[~frame["is_reference"].astype(bool)]
    names = sorted({name for phases in frame["phases"] for name in phases})
    for name in names:
        frame = frame.assign(**{f"phase_{name}": [phases.get(name) for phases in frame["phases"]]})

    def phase(name: str) -> Column:
        key = f"phase_{name}"
        return Column(
            key,
            f"{name} %",
            lambda r: percent(r[key]),
            missing="the method does not time this part",
            group="Share of pass:",
        )

    columns = [
        *_identity(view, dataset=False),
        Column("ratio_layers", "Layers ratio", lambda r: times(r["ratio_layers"]), missing=NO_REFERENCE),
        Column("ratio_linear", "FLOPs ratio linear", lambda r: times(r["ratio_linear"]), missing=NO_REFERENCE),
        Column("ratio_full", "FLOPs ratio full", lambda r: times(r["ratio_full"]), missing=NO_REFERENCE),
        Column("speedup", "Speed-up", lambda r: times(r["speedup"]), missing=NO_REFERENCE),
        Column("kept", "Kept %", lambda r: percent(r["kept"], 0), missing=NO_REFERENCE),
        *(phase(name) for name in names),
    ]
    notes = [
        (
            "Kept: speed-up over linear FLOPs ratio; what is missing to 100 % went to heads, sorting, copies, "
            "smaller batches and launch costs."
        )
    ]
    csv = (
        *_IDENTITY,
        "ratio_layers",
        "ratio_linear",
        "ratio_full",
        "speedup",
        "kept",
        *(f"phase_{name}" for name in names),
    )
    return Table(
        f"anatomy-{group.slug}",
        _caption("The speed-up taken apart", group),
        frame,
        columns,
        csv,
        notes + _marks(frame),
        split="kind",
    )


def difficulty_table(view: View, group: Group) -> Table | None:
    """Accuracy and mean exit layer per true difficulty; None where it is not known."""
    long = view.of(group, "difficulty")
    if not len(long):
        return None
    levels = sorted({int(level) for level in long["difficulty"]})
    keys = ["label", "dataset", "data", "kind", "method", "point", *SETTING, "rounds_agree"]
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
        _caption("By true difficulty", group),
        frame,
        [*_identity(view, dataset=False), *(column for level in levels for column in columns(level))],
        (*keys, *(f"{name}_{level}" for level in levels for name in ("n", "accuracy", "exit_layer"))),
        notes + _marks(frame),
        split="kind",
    )
