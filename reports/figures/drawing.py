"""Colours and style of all figures, the look of each method, and a finished figure with its form inside the page.

Colour-blind readers, print and dark pages are supported: every method has a marker of its own in addition to its colour.
matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from reports.analysis.view import View
from reports.figures.fonts import USUAL, use_ascii

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe & Ito, "Color Universal Design" (2008), without its yellow, which is faint on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAIN, LOSS = OKABE_ITO[0], OKABE_ITO[1]
# Ink and paper are unusual greys, so that the page can replace them in a dark colour scheme.
INK, FAINT, PAPER = "#222324", "#D9DADB", "#FDFEFF"
GREYS = ("#6B6C6D", "#9A9B9C")

# A point of a figure: x and y in points from the top left, and its description.
Spot = tuple[float, float, str]


@dataclass(frozen=True)
class Drawing:
    """One figure, rendered.

    Attributes:
        name: file name without suffix; contains ``synthetic`` where the data is.
        title: for captions; contains ``synthetic`` where the data is.
        description: for readers who cannot see it.
        svg: the SVG file.
        png: the PNG file; None where there is only an SVG.
        role: its place on the page.
        about: the one method that it shows; empty where it shows several.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes | None = None
    role: str = "pareto"
    about: str = ""


def with_spots(svg: str, spots: Sequence[Spot]) -> str:
    """Return the figure with an invisible disc over every point; pointing at it shows the description of the point."""
    discs = "".join(
        f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="7" fill-opacity="0"><title>{escape(text)}</title></circle>\n'
        for x, y, text in spots
    )
    before, end, after = svg.rpartition("</svg>")
    return f"{before}{discs}{end}{after}" if spots else svg


_XML_HEAD = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_NOT_FOR_PAGES = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|\sxmlns(?::\w+)?=\"[^\"]*\"", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
_STILL = re.compile(r' transform="rotate\(-?0 [^"]*\)"')
_PATH = re.compile(r' d="([^"]*)"')
_AROUND = re.compile(r"\s*([A-Za-z])\s*")
_FAMILY = re.compile(r"font-family: [^;]*(?:; )?")
_STYLE = re.compile(r' style="([^"]*)"')


def _short_tag(tag: re.Match[str]) -> str:
    """Return a tag with coordinates of two decimals (points of 1/72 inch) and without needless space."""
    text = _DECIMALS.sub(r"\1", _STILL.sub("", tag[0]))
    text = _PATH.sub(lambda found: ' d="' + _AROUND.sub(r"\1", found[1]) + '"', text)
    text = _STYLE.sub(
        lambda found: ' style="' + _FAMILY.sub("", found[1]).replace(": ", ":").replace("; ", ";") + '"', text
    )
    return text.replace("\n", " ")


def inline_svg(drawing: Drawing) -> str:
    """Return the SVG for use inside a page: no prolog, unique ids, ink and paper in the colours of the page.

    It is a third as large as the file, because a page holds many figures: unused ids and needless digits are removed.
    """
    text = _NOT_FOR_PAGES.sub("", _XML_HEAD.sub("", drawing.svg))
    kept = {name for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text) for name in pair}
    prefix = f"f{zlib.crc32(drawing.name.encode()):x}"
    text = re.sub(r'\s\bid="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in kept else "", text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'href="#{prefix}-\2"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r">\s+<", "><", _TAG.sub(_short_tag, text))
    while (shorter := re.sub(r"<g>(<g>(?:[^<]|<(?!/?g\b))*</g>)</g>|<g></g>|<defs></defs>", r"\1", text)) != text:
        text = shorter
    for color, variable in ((INK, "var(--ink)"), (FAINT, "var(--line)"), (PAPER, "var(--card)")):
        text = re.sub(color, variable, text, flags=re.IGNORECASE)
    head, end, body = text.partition(">")
    # Figures drawn with Canvas give their size in pixels, at which their text is readable.
    natural = re.search(r'\swidth="([\d.]+)"', head)
    size = f' style="width:{natural[1]}px"' if natural else ""
    head = re.sub(r'\s(?:height|width|version|font-family|role)="[^"]*"', "", head)
    return f'{head}{size} role="img" font-family="DejaVu Sans, Verdana, sans-serif" stroke-linejoin="round"{end}{body}'


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
STYLE: dict[str, object] = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
)
STYLE |= {"svg.fonttype": "none", "svg.hashsalt": "geep-bench", "font.family": USUAL, "font.size": 9}
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
    use_ascii(figure)
    # The PNG has a white background, because dark viewers cannot recolour it.
    figure.savefig(png, format="png", dpi=130, transparent=False, facecolor="white", metadata={"Software": None})
    return Drawing(name, title, description, with_spots(svg.getvalue().decode(), spots), png.getvalue(), role)
