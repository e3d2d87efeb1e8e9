"""Style of all matplotlib figures, and the look of each method.

Colour-blind readers, print and dark pages are supported: every method has a marker of its own in addition to its colour.
matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.analysis.view import View
from reports.figures.drawing import FAINT, GREYS, INK, OKABE_ITO, Drawing, Spot, with_spots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
STYLE: dict[str, object] = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
)
STYLE |= {"svg.fonttype": "none", "svg.hashsalt": "geep-bench", "font.family": "DejaVu Sans", "font.size": 9}
STYLE |= {"axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {"axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True}
STYLE |= {"legend.frameon": False, "legend.fontsize": 8, "savefig.transparent": True, "text.parse_math": False}


@dataclass(frozen=True)
class Look:
    """How one method is drawn in every figure of a report."""

    color: str
    marker: str
    line: str
    hollow: bool


def looks(view: View) -> dict[str, Look]:
    """Return one look per method of the run: the reference in ink, methods in colour, controls in grey, bounds dotted."""
    chosen: dict[str, Look] = {}
    counts = {"method": 0, "control": 0, "bound": 0}
    kinds = {row.method: row.kind for row in reversed(view.rows)}
    references = {row.method for row in view.rows if row.is_reference}
    for method, kind in sorted(kinds.items()):
        i = counts[kind]
        if method in references:
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
    """Return an empty figure, in inches, with axes that fill it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def render(
    figure: Figure, name: str, title: str, description: str, *, role: str, spots: Sequence[Spot] = ()
) -> Drawing:
    """Return the finished figure as SVG and PNG; ``spots`` name its points."""
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # The PNG has a white background, because dark viewers cannot recolour it.
    figure.savefig(png, format="png", dpi=130, transparent=False, facecolor="white", metadata={"Software": None})
    return Drawing(name, title, description, with_spots(svg.getvalue().decode(), spots), png.getvalue(), role)
