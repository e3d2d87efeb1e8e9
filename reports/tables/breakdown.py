"""Tables that take results apart: the waterfall, shares of a pass, and the quality of predictions."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.analysis.cell_settings import SETTING
from reports.analysis.prediction_quality import SEQUENTIAL
from reports.analysis.view import Group, View
from reports.figures.waterfall import LOSSES, factor_text, factor_value, loss_text, waterfall_note
from reports.notation.marks import footnotes, marked
from reports.notation.numbers import fixed, minus, percent, points, times
from reports.tables.formats import Column, Table
from reports.tables.summary import (
    IDENTITY,
    NO_REFERENCE,
    caption,
    identity_columns,
    noise_column,
    noise_notes,
    setting_columns,
)

NO_WATERFALL = "not recorded: an older result, no reference, or a method without blocks that count"


def waterfall_table(view: View, group: Group) -> Table | None:
    """Factors from layers to wall time for every row but the reference; None where no row has them."""
    frame = view.of(group)
    frame = frame[~frame["is_reference"].astype(bool)]
    known = [one for one in frame["waterfall"] if one is not None]
    if not known:
        return None
    found = {factor.name for one in known for factor in one.factors}
    names = [name for name in LOSSES if name in found] + sorted(found - set(LOSSES))
    frame = frame.copy()
    for name in names:
        frame[f"factor {name}"] = [factor_value(one, name) for one in frame["waterfall"]]
    frame["measured"] = [one.measured if one is not None else None for one in frame["waterfall"]]
    frame["loss"] = [loss_text(one) for one in frame["waterfall"]]

    def factor(name: str) -> Column:
        why = f"the method has no such step, or {NO_WATERFALL}"
        return Column(f"factor {name}", name, lambda r: factor_text(r["waterfall"], name), missing=why)

    columns = [
        *identity_columns(view, dataset=False),
        *(factor(name) for name in names),
        Column("measured", "= speed-up", lambda r: times(r["measured"]), missing=NO_WATERFALL),
        noise_column(),
        Column("loss", "Largest loss", lambda r: r["loss"], numeric=False, missing=NO_WATERFALL),
    ]
    several = frame["seeds"].max() > 1
    notes = [
        (
            "The factors of a row multiply to its speed-up in the round nearest to the median"
            + (", geometric means over seeds; words are of one seed." if several else ".")
        ),
        waterfall_note(names),
        *noise_notes(frame),
    ]
    csv = (*IDENTITY, *(f"factor {name}" for name in names), "measured", "speedup", "noise_high", "loss", "marks")
    return Table(
        f"waterfall-{group.slug}",
        caption("From layers to wall time", group),
        frame,
        columns,
        csv,
        notes + footnotes(frame),
        split="kind",
    )


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
        *identity_columns(view, dataset=False),
        Column("ratio_layers", "Layers ratio", lambda r: times(r["ratio_layers"]), missing=NO_REFERENCE),
        Column("ratio_linear", "FLOPs ratio linear", lambda r: times(r["ratio_linear"]), missing=NO_REFERENCE),
        Column("ratio_full", "FLOPs ratio full", lambda r: times(r["ratio_full"]), missing=NO_REFERENCE),
        Column("speedup", "Speed-up", lambda r: times(r["speedup"]), missing=NO_REFERENCE),
        noise_column(),
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
        *IDENTITY,
        "ratio_layers",
        "ratio_linear",
        "ratio_full",
        "speedup",
        "noise_high",
        "kept",
        *(f"phase_{name}" for name in names),
    )
    return Table(
        f"anatomy-{group.slug}",
        caption("Ratios of layers, FLOPs and time, and shares of a pass", group),
        frame,
        columns,
        csv,
        notes + footnotes(frame),
        split="kind",
    )


def predictor_table(view: View, group: Group) -> Table | None:
    """Predicted exits against the sequential exit, methods beside controls; None where nothing is predicted."""
    frame = view.of(group, "predictors")
    if not len(frame):
        return None
    constant = "one of the two never changes, so nothing is ranked"
    oracle = "no oracle with per-sample rows in this run under the same conditions"

    def layers(key: str) -> Column:
        return Column(key, "layers", lambda r: _signed(r[key]), missing=oracle, group=_AGAINST[key.split("_vs_")[1]])

    def accuracy(key: str) -> Column:
        return Column(
            key, "accuracy, points", lambda r: points(r[key], 2), missing=oracle, group=_AGAINST[key.split("_vs_")[1]]
        )

    def share(key: str, label: str) -> Column:
        return Column(key, label, lambda r: percent(r[key]))

    columns = [
        Column("method", "Method", lambda r: marked(str(r["method"]), r), numeric=False),
        Column("point", "Point", lambda r: r["point"], numeric=False),
        *setting_columns(view),
        Column("tau_b", "Kendall tau-b", lambda r: minus(fixed(r["tau_b"])), missing=constant),
        share("hit", "Hits %"),
        share("within_one", "Within one layer %"),
        share("early", "Too early %"),
        share("late", "Too late %"),
        Column(
            "unseen_tokens",
            "Unseen tokens %",
            lambda r: percent(r["unseen_tokens"]),
            missing="there is no exit table behind this row, or the run did not count",
        ),
        accuracy("accuracy_vs_sequential"),
        Column("cost_early", "of it, too early", lambda r: points(r["cost_early"], 2), group=_AGAINST["sequential"]),
        Column("cost_late", "of it, too late", lambda r: points(r["cost_late"], 2), group=_AGAINST["sequential"]),
        layers("layers_vs_sequential"),
        accuracy("accuracy_vs_oracle"),
        layers("layers_vs_oracle"),
    ]
    csv = (
        *("data", "dataset", "kind", "method", "point", *SETTING, "seeds", "n", "compared_with"),
        *("tau_b", "hit", "within_one", "early", "late", "unseen_tokens", "cost_early", "cost_late"),
        *("accuracy_vs_sequential", "layers_vs_sequential", "accuracy_vs_oracle", "layers_vs_oracle", "marks"),
    )
    notes = [
        (
            f"Predicted exits against the layer where {SEQUENTIAL} leaves on the same weights and samples, at the same point. "
            "Hits: the same layer; too early costs accuracy, too late costs layers. Kendall's tau-b ranks pairs of "
            "samples and corrects for ties, of which exits are full; a predictor that knows nothing has about 0."
        ),
        (
            "Verified exits ask a head where prediction says so: their hits are those of the prediction, their accuracy and layers "
            "those of the answer. The oracle leaves at the first layer that agrees with full depth."
        ),
    ]
    return Table(
        f"predictor-{group.slug}",
        caption("How well exits are predicted", group),
        frame,
        columns,
        csv,
        notes + footnotes(frame),
        split="base",
    )


_AGAINST = {"sequential": "Against sequential:", "oracle": "Against oracle:"}


def _signed(value: object) -> str:
    """A difference with its sign; none at zero."""
    text = fixed(value)
    return minus(text) if not text[:1].isdigit() or not float(text.replace(",", "")) else f"+{text}"


def predictor_records(view: View, group: Group) -> list[dict[str, Any]]:
    """Rows behind the heat maps of a dataset."""
    frame: pd.DataFrame = view.of(group, "predictors")
    return [{str(key): value for key, value in record.items()} for record in frame.to_dict("records")]
