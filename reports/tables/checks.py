"""What must hold whatever is measured: invariance, an unchanged table, and no test row seen before."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.analysis.view import View
from reports.notation.marks import footnotes, marked, together
from reports.notation.numbers import DASH, finite, percent, whole
from reports.tables.formats import Column, Row, Table
from reports.tables.summary import data_tag

_OVERLAPS = {
    "overlap_train_test": "Test rows also in train",
    "overlap_dev_test": "Test rows also in dev",
    "overlap_train_dev": "Dev rows also in train",
    "overlap_within_test": "Test rows that occur twice or more",
}
NOT_LOOKED_AT = "not looked at in this run"


def checks_tables(view: View) -> list[Table]:
    """One row per dataset and method: the worst over its operating points and seeds; real and synthetic data apart."""
    tables = []
    for synthetic in (False, True):
        frame = view.rows[view.rows["synthetic"] == synthetic]
        rows = [
            _worst(part.to_dict("records")) for _, part in frame.groupby(["slug", "method"], sort=False) if len(part)
        ]
        if not rows:
            continue
        worst = pd.DataFrame(rows).astype(object)
        worst = worst.where(worst.notna(), None)
        columns = [
            Column("dataset", "Dataset", lambda r: r["dataset"], numeric=False),
            Column("method", "Method", lambda r: marked(str(r["method"]), r), numeric=False),
            Column("points", "Rows", lambda r: whole(r["points"])),
            Column("rounds_agree", "Same label in any order %", lambda r: percent(r["rounds_agree"], 2)),
            Column(
                "batches_agree",
                "Same label in any batch size %",
                lambda r: percent(r["batches_agree"], 2),
                missing=NOT_LOOKED_AT,
            ),
            Column("state_unchanged", "Unchanged by testing", _unchanged, numeric=False, missing=NOT_LOOKED_AT),
            Column(
                "syncs",
                "Syncs a pass",
                lambda r: whole(r["syncs"]),
                missing="counted on CUDA only, where it is asked for",
            ),
            Column("verdict", "Verdict", lambda r: r["verdict"], numeric=False),
        ]
        tables.append(
            Table(
                "checks-synthetic" if synthetic else "checks",
                f"Checks of every method, the worst of its rows{data_tag(synthetic)}",
                worst,
                columns,
                ("data", "dataset", "method", *(column.key for column in columns[2:]), "marks"),
                footnotes(worst),
                split="dataset",
            )
        )
    return tables


def _worst(records: list[dict[Any, Any]]) -> dict[str, Any]:
    first = records[0]
    row = {name: first[name] for name in ("data", "dataset", "label", "method", "kind")}
    for name, choose in (("rounds_agree", min), ("batches_agree", min), ("syncs", max)):
        row[name] = choose((r[name] for r in records if finite(r[name])), default=None)
    unchanged = [r["state_unchanged"] for r in records if r["state_unchanged"] is not None]
    row["state_unchanged"] = all(unchanged) if unchanged else None
    row["marks"] = together(*(str(r["marks"]) for r in records))
    row["points"] = len(records)
    failed = [sign for sign in row["marks"] if sign in "†‡§"]
    looked = [row[name] is not None for name in ("rounds_agree", "batches_agree", "state_unchanged")]
    row["verdict"] = "fails" if failed else "holds" if all(looked) else "holds, as far as looked at"
    return row


def _unchanged(row: Row) -> str:
    return DASH if row["state_unchanged"] is None else "yes" if row["state_unchanged"] else "no"


def overlap_table(view: View) -> Table | None:
    """Rows that two splits share, one row per dataset; None where nobody counted."""
    rows = []
    for group in view.groups:
        part = view.of(group)
        row: dict[str, Any] = {"label": group.label, "dataset": group.label, "test": part["n"].max()}
        for name in _OVERLAPS:
            row[name] = max((value for value in part[name] if finite(value)), default=None)
        rows.append(row)
    frame = pd.DataFrame(rows).astype(object)
    frame = frame.where(frame.notna(), None)
    if not any(finite(row[name]) for row in rows for name in _OVERLAPS):
        return None
    columns = [
        Column("dataset", "Dataset", lambda r: r["dataset"], numeric=False),
        Column("test", "Test samples", lambda r: whole(r["test"])),
        *(_counts(key, label) for key, label in _OVERLAPS.items()),
    ]
    synthetic = all(group.synthetic for group in view.groups)
    return Table(
        "overlaps" + ("-synthetic" if view.synthetic else ""),
        "Rows that splits share"
        + (data_tag(True) if synthetic else ", synthetic data marked" if view.synthetic else ""),
        frame,
        columns,
        ("dataset", "test", *_OVERLAPS),
        [
            (
                "Rows are the same when their token ids are, cut to the length that the model sees. In brackets: share of the "
                "test samples. Thresholds are tuned on dev, weights on train, so what test shares with them was seen."
            )
        ],
    )


def _counts(key: str, label: str) -> Column:
    return Column(key, label, lambda r: _count(r, key), missing=NOT_LOOKED_AT)


def _count(row: Row, key: str) -> str:
    if not finite(row[key]):
        return DASH
    if key == "overlap_train_dev" or not row["test"]:
        return whole(row[key])
    return f"{whole(row[key])} ({percent(row[key] / row['test'], 2)} %)"
