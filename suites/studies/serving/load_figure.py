"""The figure of the load study: p50 and p99 over the rate of arrivals, measured and expected.

Colours: Okabe & Ito, "Color Universal Design" (2008); every method also has its own marker.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from suites.studies.serving.load_page import curves
from suites.studies.shared.study_page import dataset_title

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222324")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
QUANTILES = ("p50", "p99")


def load_figure(rows: Sequence[Mapping[str, Any]], bound: float) -> str:
    """Return an SVG with a column of panels per rule, for one dataset and seed.

    Args:
        bound: of p99, seconds.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = [(label, rule, [row for row in curve if row["keeps_up"]]) for label, rule, curve in curves(rows)]
    rules = list(dict.fromkeys(rule for _, rule, _ in drawn))
    labels = list(dict.fromkeys(label for label, _, _ in drawn))
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "geep-bench", "text.parse_math": False, "font.size": 9}
    ):
        figure = Figure(figsize=(1.2 + 3.2 * len(rules), 6.6), layout="constrained")
        figure.suptitle(f"{dataset_title(rows[0])}: latency under load, measured (marks) and computed (dotted)")
        panels = figure.subplots(2, len(rules), sharex=True, sharey=True, squeeze=False)
        for label, rule, curve in drawn:
            place, column = labels.index(label), rules.index(rule)
            rates = [row["rate"] for row in curve]
            for line, quantile in enumerate(QUANTILES):
                axes, colour = panels[line][column], COLOURS[place % len(COLOURS)]
                measured = [1000 * row[quantile] for row in curve]
                expected = [1000 * row["expected"][quantile] for row in curve]
                axes.plot(rates, measured, color=colour, marker=MARKERS[place % len(MARKERS)], ms=4, lw=1, label=label)
                axes.plot(rates, expected, color=colour, linestyle=":", linewidth=1)
        for line, quantile in enumerate(QUANTILES):
            for column, rule in enumerate(rules):
                axes = panels[line][column]
                axes.set(xscale="log", yscale="log", title=f"{quantile}, {rule}")
                axes.grid(color="#D9DADB", linewidth=0.6)
                if quantile == "p99":
                    axes.axhline(1000 * bound, color="#6B6C6D", linestyle="--", linewidth=1)
                    axes.set_xlabel("arriving queries/s")
            panels[line][0].set_ylabel("ms")
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, ncols=3, fontsize=8, frameon=False, loc="outside lower center")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
