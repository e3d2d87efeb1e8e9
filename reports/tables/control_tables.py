"""Tables of predicting methods against their controls."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.analysis.cell_settings import SETTING
from reports.analysis.view import View
from reports.notation.marks import footnotes, marked, together
from reports.notation.numbers import DASH, fixed, p_value, points, times
from reports.tables.formats import Column, Row, Table
from reports.tables.summary import data_tag, noise_column, noise_notes, setting_columns


def controls_tables(view: View) -> list[Table]:
    """Predicting methods against their controls; real and synthetic data apart."""
    tables: list[Table] = []
    if not len(view.verdicts):
        return tables
    missing = "per-sample rows are missing or share no seed"
    columns = [
        Column("dataset", "Dataset", lambda r: r["dataset"], numeric=False),
        Column("method", "Method", lambda r: marked(str(r["method"]), r), numeric=False),
        Column("point", "Point", lambda r: r["point"], numeric=False),
        *setting_columns(view),
        Column("verdict", "Verdict", lambda r: r["verdict"].rstrip(","), numeric=False),
        Column("control", "Control", _control, numeric=False),
        Column("difference", "Accuracy difference, points", lambda r: points(r["difference"], 2), missing=missing),
        Column("wins", "Won : lost", lambda r: f"{r['wins']} : {r['losses']}" if r["pairs"] else DASH, missing=missing),
        Column("p", "p exact", lambda r: p_value(r["p"]), missing=missing),
        Column("p_holm", "p adjusted", lambda r: p_value(r["p_holm"]), missing=missing),
        Column("layer_ratio", "Layers vs control", lambda r: times(r["layer_ratio"])),
        Column("mean_heads", "Heads a sample", lambda r: f"{fixed(r['mean_heads'])} vs {fixed(r['control_heads'])}"),
        Column("speed_ratio", "Samples/s vs control", lambda r: times(r["speed_ratio"])),
        noise_column(),
    ]
    csv = (
        "data",
        "dataset",
        "method",
        "point",
        *SETTING,
        "control",
        "control_point",
        "verdict",
        "seeds",
        "pairs",
        "accuracy",
        "control_accuracy",
        "difference",
        "wins",
        "losses",
        "p",
        "p_holm",
        "mean_layers",
        "control_layers",
        "layer_ratio",
        "mean_heads",
        "control_heads",
        "speed_ratio",
        "noise_high",
        "close",
        "marks",
    )
    notes = [
        "Won : lost counts test samples that only the method, or only the control, answers rightly; exact McNemar test"
        + (
            ", over several seeds a sign test on each sample's wins minus losses"
            if view.verdicts["seeds"].max() > 1
            else ""
        )
        + ". Verdicts use p adjusted for all comparisons of the dataset (Holm, 5 %)."
    ]
    for name, part in view.verdicts.groupby("data"):
        synthetic = name == "synthetic"
        tables.append(
            Table(
                "controls-synthetic" if synthetic else "controls",
                f"Does prediction beat its controls?{data_tag(synthetic)}",
                part,
                columns,
                csv,
                [*notes, *noise_notes(part), *footnotes(part)],
                split="label",
            )
        )
    return tables


def tally_tables(view: View) -> list[Table]:
    """How often each predicting method beats each control; real and synthetic data apart."""
    tables: list[Table] = []
    if not len(view.verdicts):
        return tables
    short = {
        "beats": "beats",
        "beats, with more layers,": "beats with more layers",
        "no better than": "no better",
        "worse than": "worse",
        "cannot be compared with": "not comparable",
    }
    for name, part in view.verdicts.groupby("data"):
        controls = sorted(part["control"].unique())
        rows = []
        for (label, dataset, method), mine in part.groupby(["label", "dataset", "method"], sort=False):
            row: dict[str, Any] = {"data": name, "label": label, "dataset": dataset, "method": method, "equal": None}
            row["marks"] = together(*mine["marks"])
            for control, versus in mine.groupby("control"):
                counts = versus["verdict"].value_counts()
                row[str(control)] = ", ".join(
                    f"{text} {counts[word]}" for word, text in short.items() if word in counts
                )
            if mine["verified"].all():
                row["equal"] = f"{int(mine['close'].sum())} of {len(mine)}"
            rows.append(row)

        def column(key: str, heading: str, why: str) -> Column:
            return Column(
                key, heading, lambda r: r[key] if isinstance(r[key], str) else DASH, numeric=False, missing=why
            )

        columns = [
            Column("dataset", "Dataset", lambda r: r["dataset"], numeric=False),
            Column("method", "Method", lambda r: marked(str(r["method"]), r), numeric=False),
            *(
                column(c, f"Against {c}", "not measured at the same point, or not this method's question")
                for c in controls
            ),
            column("equal", "Keeps up: at most 0.2 points less, 5 % more layers", "asked of verified exits only"),
        ]
        synthetic = name == "synthetic"
        frame = pd.DataFrame(rows)
        tables.append(
            Table(
                "controls-tally-synthetic" if synthetic else "controls-tally",
                f"Verdicts against the controls, counted over operating points{data_tag(synthetic)}",
                frame,
                columns,
                ("data", "dataset", "method", *controls, "equal"),
                footnotes(frame),
                split="label",
            )
        )
    return tables


def _control(row: Row) -> str:
    same = row["control_point"] == row["point"]
    return str(row["control"]) if same else f"{row['control']} at {row['control_point']}"
