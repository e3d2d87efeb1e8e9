"""Places of the labels of points, so that they cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reports.figures.drawing import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# x and y of the point, words, colour.
Label = tuple[float, float, str, str]
Box = tuple[float, float, float, float]


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Put each label beside its point where it covers nothing; without enough room, try its last word, then none."""
    if not labels:
        return
    pixels = axes.transData.transform([(x, y) for x, y, _, _ in labels])
    scale = axes.figure.dpi / 72.0
    taken = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in pixels]
    frame = axes.get_window_extent()
    for (px, py), (x, y, text, color) in zip(pixels, labels, strict=True):
        for words in dict.fromkeys((text, text.rpartition(" ")[2])):
            place = _free_place(px, py, words, scale, taken, (frame.x0, frame.x1 + 8 * scale))
            if words and place is not None:
                taken.append(place)
                centre = ((place[0] + place[2]) / 2 - px) / scale, ((place[1] + place[3]) / 2 - py) / scale
                style: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "center", "color": color, "zorder": 5}
                axes.annotate(words, (x, y), xytext=centre, textcoords="offset points", **style)
                break


def _free_place(
    px: float, py: float, text: str, scale: float, taken: Sequence[Box], frame: tuple[float, float]
) -> Box | None:
    """Return a box for ``text`` near a point, in pixels, that covers no taken one and stays inside the axes sideways."""
    width, height = (4.4 * len(text) + 1) * scale, 8.0 * scale
    for dx, dy in ((11, 0), (-11, 0), (9, 6), (-9, 6), (9, -6), (-9, -6), (0, 9), (0, -9), (9, 12), (9, -12), (-9, 12)):
        shift = (width / 2 - 4 * scale) * ((dx > 0) - (dx < 0))
        cx, cy = px + dx * scale + shift, py + dy * scale
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        if box[0] < frame[0] or box[2] > frame[1]:
            continue
        if all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
            return box
    return None


# Distances from the point in points of a 72nd inch, and directions: beside it first.
_REACH = (7.0, 11.0, 16.0, 22.0, 29.0, 37.0, 46.0, 56.0, 70.0)
_TURNS = tuple(math.radians(d) for d in (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90))


def place_all_labels(axes: Axes, labels: Sequence[Label], others: Sequence[tuple[float, float]], size: float) -> int:
    """Write every label near its point, joined to it by a thin line where it is not beside it; return how many found no free place.

    Points with little room around them come first. A label without a free place stands where it covers the least.

    Args:
        labels: to be written.
        others: further points that labels should not cover, in data coordinates.
        size: of the font.
    """
    if not labels:
        return 0
    canvas: Any = axes.figure.canvas
    scale = axes.figure.dpi / 72.0
    frame = axes.get_window_extent()
    own = axes.transData.transform([(x, y) for x, y, _, _ in labels])
    far: Any = axes.transData.transform(list(others)) if others else []
    marks = [(px - 2.5 * scale, py - 2.5 * scale, px + 2.5 * scale, py + 2.5 * scale) for px, py in [*own, *far]]
    taken: list[Box] = []
    crowded = 0
    order = sorted(
        range(len(labels)), key=lambda i: min((math.dist(own[i], p) for p in own if p is not own[i]), default=0)
    )
    for at in order:
        x, y, text, color = labels[at]
        # In ink, because the light colours are faint as text; markers and lines have the colour.
        style: dict[str, Any] = {"fontsize": size, "ha": "center", "va": "center", "color": INK, "zorder": 6}
        note = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", **style)
        extent = note.get_window_extent(canvas.get_renderer())
        half = extent.width / 2 + 1.2 * scale, 0.45 * extent.height
        best: tuple[float, float, float, Box] | None = None
        for reach in _REACH:
            for turn in _TURNS:
                dx, dy = math.cos(turn), math.sin(turn)
                cx = own[at][0] + dx * (reach * scale + half[0] * abs(dx))
                cy = own[at][1] + dy * (reach * scale + half[1])
                box = (cx - half[0], cy - half[1], cx + half[0], cy + half[1])
                if box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1:
                    continue
                covered = sum(_shared(box, one) for one in taken) * 4 + sum(_shared(box, one) for one in marks)
                if best is None or covered < best[0]:
                    best = covered, cx, cy, box
            if best is not None and best[0] == 0:
                break
        if best is None:
            note.remove()
            crowded += 1
            continue
        crowded += best[0] > 0
        taken.append(best[3])
        offset = (best[1] - own[at][0]) / scale, (best[2] - own[at][1]) / scale
        note.set_position(offset)
        if max(abs(offset[0]) - half[0] / scale, abs(offset[1]) - half[1] / scale) > 8:
            near = max(best[3][0], min(own[at][0], best[3][2])), max(best[3][1], min(own[at][1], best[3][3]))
            line = axes.transData.inverted().transform([own[at], near])
            axes.plot(*line.T, color=color, lw=0.4, alpha=0.7, zorder=5, label="_")
    return crowded


def _shared(a: Box, b: Box) -> float:
    """Return the area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
