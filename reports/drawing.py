"""A finished figure, and how it goes into the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from reports.palette import FAINT, INK, PAPER

# A point of a figure: x and y in points from the top left, and what it says of itself.
Spot = tuple[float, float, str]


@dataclass(frozen=True)
class Drawing:
    """One figure, rendered.

    Attributes:
        name: file name without suffix; carries ``synthetic`` where due.
        title: for captions; carries ``synthetic`` where due.
        description: for people who cannot see it.
        svg: the SVG file.
        png: the PNG file; None where the SVG is all there is.
        role: which place of the page it belongs to.
        about: the one method that it is about; empty where it is about several.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes | None = None
    role: str = "pareto"
    about: str = ""


def with_spots(svg: str, spots: Sequence[Spot]) -> str:
    """The figure with an invisible disc over every point, which says what the point is when it is pointed at."""
    discs = "".join(
        f'<circle class="spot" cx="{x:.1f}" cy="{y:.1f}" r="7" fill-opacity="0"><title>{escape(text)}</title></circle>\n'
        for x, y, text in spots
    )
    before, end, after = svg.rpartition("</svg>")
    return f"{before}{discs}{end}{after}" if spots else svg


_XML_HEAD = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_NUMBER = re.compile(r"(\d\.\d\d)\d+")
_STILL = re.compile(r' transform="rotate\(-?0 [^"]*\)"')
_FAMILY = "font-family: 'DejaVu Sans'; "


def inline_svg(drawing: Drawing) -> str:
    """The SVG for use inside a page: no prolog, ids of its own, ink and paper that follow the page's colours.

    Coordinates keep two decimals (points of 1/72 inch) and ids that nothing refers to go: a page holds many figures.
    """
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", _XML_HEAD.sub("", drawing.svg), flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    kept = {name for pair in used for name in pair if name}
    prefix = re.sub(r"\W", "_", drawing.name)
    text = re.sub(r'\s\bid="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in kept else "", text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'href="#{prefix}-\2"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = _TAG.sub(lambda tag: _NUMBER.sub(r"\1", _STILL.sub("", tag[0].replace(_FAMILY, "")).replace("\n", " ")), text)
    text = re.sub(r">\s+<", "><", text).replace("<g></g>", "").replace("<defs></defs>", "")
    for color, variable in ((INK, "var(--ink)"), (FAINT, "var(--line)"), (PAPER, "var(--card)")):
        text = re.sub(color, variable, text, flags=re.IGNORECASE)
    return re.sub(
        r'<svg ([^>]*?)(?:height|width)="[^"]*"([^>]*?)(?:height|width)="[^"]*"', r'<svg role="img" \1\2', text, count=1
    ).replace('<svg role="img" ', '<svg role="img" font-family="DejaVu Sans, Verdana, sans-serif" stroke-linejoin="round" ', 1)
