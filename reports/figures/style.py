"""What all matplotlib figures share: style, paper, and how each method looks.

Readable by colour-blind people, in print and in the dark: every method has a marker of its own beside its colour. matplotlib
is imported when the first figure is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.analysis.view import View
from reports.figures.drawing import Drawing, Spot, with_spots
from reports.figures.palette import FAINT, GREYS, INK, OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "geep-bench",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.transparent": True,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Look:
    """How one method is drawn, the same in every figure of a report."""

    color: str
    marker: str
    line: str
    hollow: bool


def looks(view: View) -> dict[str, Look]:
    """One look per method of the run: the reference in ink, methods in colour, controls in grey, bounds dotted."""
    chosen: dict[str, Look] = {}
    counts = {"method": 0, "control": 0, "bound": 0}
    facts = view.rows.groupby("method", sort=True).agg(kind=("kind", "first"), reference=("is_reference", "any"))
    for method, kind, reference in facts.itertuples():
        i = counts[kind]
        if reference:
            chosen[method] = Look(INK, "*", "-", False)
            continue
        counts[kind] += 1
        if kind == "method":
            chosen[method] = Look(OKABE_ITO[i % len(OKABE_ITO)], MARKERS[i % len(MARKERS)], "-", False)
        elif kind == "control":
            chosen[method] = Look(GREYS[i % 2], MARKERS[(i + 1) % len(MARKERS)], "--", True)
        else:
            chosen[method] = Look(INK, "x+12"[i % 4], ":", True)
    return chosen


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def render(
    figure: Figure, name: str, title: str, description: str, *, role: str, spots: Sequence[Spot] = ()
) -> Drawing:
    """The finished figure as SVG and PNG; ``spots`` name its points."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Paper behind the PNG: transparent ones are unreadable in dark viewers, which cannot recolour them.
    figure.savefig(png, format="png", dpi=130, transparent=False, facecolor="white", metadata={"Software": None})
    return Drawing(name, title, description, with_spots(svg.getvalue().decode(), spots), png.getvalue(), role)
