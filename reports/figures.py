"""Figures: accuracy against cost, and where samples leave. Readable by colour-blind people, in print and in the dark.

Colours: Okabe & Ito, "Color Universal Design" (2008), without its yellow, which is lost on white paper; every
method has its own marker too. matplotlib is imported when the first figure is drawn.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.numbers import finite
from reports.view import Group, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
# Ink and paper are unusual greys, so that the page can find them and follow a dark colour scheme.
INK, FAINT, PAPER = "#222324", "#D9DADB", "#FDFEFF"
_GREYS = ("#6B6C6D", "#9A9B9C")
_PANELS = 4  # histograms a row
_MOST_PANELS = 36
_STYLE: dict[str, Any] = {
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
class Drawing:
    """One figure, rendered.

    Attributes:
        name: file name without suffix; carries ``synthetic`` where due.
        title: for captions; carries ``synthetic`` where due.
        description: for people who cannot see it.
        svg: the SVG file.
        png: the PNG file.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes


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
            chosen[method] = Look(_GREYS[i % 2], MARKERS[(i + 1) % len(MARKERS)], "--", True)
        else:
            chosen[method] = Look(INK, "x+12"[i % 4], ":", True)
    return chosen


def draw_figures(view: View, group: Group) -> list[Drawing]:
    """The figures of one dataset: accuracy against FLOPs, against samples/s, and exits."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        chosen = looks(view)
        drawings = [
            _pareto(view, group, chosen, "flops_linear", "flops"),
            _pareto(view, group, chosen, "samples_per_s", "throughput"),
        ]
        exits = _exits(view, group, chosen)
    return drawings + ([exits] if exits else [])


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.add_axes((0.0, 0.0, 1.0, 1.0))


def _render(figure: Figure, name: str, title: str, description: str) -> Drawing:
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Paper behind the PNG: transparent ones are unreadable in dark viewers, which cannot recolour them.
    figure.savefig(png, format="png", dpi=130, transparent=False, facecolor="white", metadata={"Software": None})
    return Drawing(name, title, description, svg.getvalue().decode(), png.getvalue())


def _series(records: Sequence[dict[str, Any]], varying: Sequence[str]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Points that one line may join: same method, same variant (``once`` of ``speed=0.5/once``), same setting."""
    together: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        variant = record["point"].partition("/")[2]
        setting = " ".join(str(record[name]) for name in varying)
        together.setdefault((record["method"], variant, setting), []).append(record)
    return together


def short_point(point: str) -> str:
    """What a label in a crowded figure says: the value of ``name=value``, without its variant."""
    return point.partition("/")[0].rpartition("=")[2]


def _pareto(view: View, group: Group, chosen: dict[str, Look], cost: str, word: str) -> Drawing:
    """Accuracy against one cost; the points of a line are joined in order of cost."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    name = f"pareto-{word}-{group.slug}"
    what = "FLOPs" if word == "flops" else "throughput"
    title = f"Accuracy against {what}: {group.label}"
    records = [r for r in view.records(group) if finite(r[cost]) and finite(r["accuracy"]) and r[cost] > 0]
    lines = _series(records, view.varying)
    variants = {key: sorted({k[1] for k in lines if k[0] == key}) for key in {k[0] for k in lines}}
    entries = {(key[0], key[2]) if chosen[key[0]].line == "--" else key for key in lines}
    legend_rows = math.ceil(len(entries) / 2)
    height = 4.2 + 0.16 * legend_rows
    figure, axes = _figure(6.0, height)
    axes.set_position((0.11, (0.16 * legend_rows + 0.55) / height, 0.86, 3.3 / height))
    labels: list[tuple[float, float, str, str]] = []
    named: set[str] = set()
    for (method, variant, setting), points in lines.items():
        look = chosen[method]
        points = sorted(points, key=lambda r: r[cost])
        x, y = [p[cost] for p in points], [100 * p["accuracy"] for p in points]
        low = [
            max(0.0, 100 * (p["accuracy"] - p["accuracy_low"])) if finite(p["accuracy_low"]) else 0.0 for p in points
        ]
        high = [
            max(0.0, 100 * (p["accuracy_high"] - p["accuracy"])) if finite(p["accuracy_high"]) else 0.0 for p in points
        ]
        hollow = look.hollow or variants[method].index(variant) % 2 == 1
        # Variants of a control look alike and share one line of the legend.
        control = points[0]["kind"] == "control"
        legend = " ".join(part for part in (method, f"({variant})" if variant and not control else "", setting) if part)
        legend += " (bound, not a method)" if points[0]["kind"] == "bound" else ""
        star = 9 if look.marker == "*" else 5
        front = 3 if points[0]["kind"] == "method" else 2
        axes.errorbar(
            x,
            y,
            yerr=[low, high],
            color=look.color,
            marker=look.marker,
            markersize=star,
            linestyle=look.line,
            linewidth=1.2 if front == 3 else 0.8,
            elinewidth=0.5,
            markerfacecolor=PAPER if hollow else look.color,
            markeredgecolor=look.color,
            markeredgewidth=1.0,
            label="_" if legend in named else legend,
            zorder=front,
            alpha=1.0 if front == 3 else 0.9,
        )
        named.add(legend)
        if points[0]["kind"] == "method" and len(points) > 1 and variant == variants[method][0]:
            labels += [(px, py, short_point(p["point"]), look.color) for px, py, p in zip(x, y, points, strict=True)]
    if records:
        values = [r[cost] for r in records]
        if max(values) / min(values) > 6:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(left=0)
    divisor, prefix = (
        (1e9, "G") if word == "flops" and max((r[cost] for r in records), default=0) >= 1e9 else (1e6, "M")
    )
    if word == "throughput":
        divisor, prefix = 1.0, ""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:,g}"))
    axes.set_xlabel(
        f"{prefix}FLOPs per sample, linear layers (fewer is better)"
        if word == "flops"
        else "samples/s (more is better)"
    )
    axes.set_ylabel("accuracy %, 95 % interval")
    axes.set_title(title)
    if lines:
        # Below the axes, in the band that the height was reserved for.
        figure.legend(
            loc="lower left",
            bbox_to_anchor=(0.02, 0.0),
            ncol=2,
            handlelength=2.4,
            labelspacing=0.25,
            columnspacing=1.2,
            borderaxespad=0.2,
            borderpad=0.2,
        )
    _place_labels(axes, labels)
    description = (
        f"{title}. {len(records)} points of {len(variants)} methods; all numbers are in the table results-{group.slug}."
    )
    return _render(figure, name, title, description)


def _place_labels(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Put each label beside its point where nothing else is; leave it out where there is no room."""
    if not labels:
        return
    pixels = axes.transData.transform([(x, y) for x, y, _, _ in labels])
    scale = axes.figure.dpi / 72.0
    taken = [(px - 4 * scale, py - 4 * scale, px + 4 * scale, py + 4 * scale) for px, py in pixels]
    for (px, py), (x, y, text, color) in zip(pixels, labels, strict=True):
        width, height = (4.6 * len(text) + 1) * scale, 8.0 * scale
        for dx, dy in ((11, 0), (-11, 0), (9, 6), (-9, 6), (9, -6), (-9, -6), (0, 9), (0, -9)):
            shift = (width / 2 - 4 * scale) * (dx > 0) - (width / 2 - 4 * scale) * (dx < 0)
            cx, cy = px + dx * scale + shift, py + dy * scale
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            if all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
                taken.append(box)
                axes.annotate(
                    text,
                    (x, y),
                    xytext=((cx - px) / scale, (cy - py) / scale),
                    textcoords="offset points",
                    fontsize=7,
                    ha="center",
                    va="center",
                    color=color if color != INK else INK,
                    zorder=5,
                )
                break


def _exits(view: View, group: Group, chosen: dict[str, Look]) -> Drawing | None:
    """Small multiples of the exit histograms, drawn on one pair of axes because many axes are slow."""
    from matplotlib.collections import LineCollection, PolyCollection

    records = [r for r in view.records(group) if sum(1 for count in r["histogram"] if count) > 1]
    if not records:
        return None
    # A control that mirrors a row shown has its histogram by construction: once is enough.
    total = len(records)
    records = list(
        {
            (r["point"], tuple(r["histogram"]), tuple(str(r[n]) for n in view.varying)): r for r in reversed(records)
        }.values()
    )
    records = records[::-1][:_MOST_PANELS]
    left_out = total - len(records)
    highest = max(count / sum(r["histogram"]) for r in records for count in r["histogram"])
    rows = math.ceil(len(records) / _PANELS)
    title = f"Where samples leave: {group.label}"
    height = 0.62 + 0.86 * rows
    figure, axes = _figure(7.6, height)
    axes.set_axis_off()
    axes.set_position((0.02, 0.02, 0.96, 1 - 0.36 / height - 0.02))
    axes.set_xlim(0, _PANELS)
    axes.set_ylim(-rows, 0)
    figure.text(0.02, 1 - 0.14 / height, title, fontsize=10, va="center")
    note = f"share of samples per exit layer, tallest bar {100 * highest:.0f} %; ▾ mean layers executed"
    figure.text(
        0.02,
        1 - 0.32 / height,
        note + (f"; {left_out} rows alike or in excess left out" if left_out else ""),
        fontsize=7.5,
        va="center",
    )
    bars, colors, baselines = [], [], []
    for number, record in enumerate(records):
        x0, y0 = number % _PANELS + 0.03, -(number // _PANELS) - 0.86
        counts, look = record["histogram"], chosen[record["method"]]
        tallest, depth, width, room = highest * sum(counts), len(counts), 0.9, 0.52
        step = width / depth
        for layer, count in enumerate(counts):
            x, top = x0 + layer * step, y0 + room * count / tallest
            bars.append([(x + 0.1 * step, y0), (x + 0.9 * step, y0), (x + 0.9 * step, top), (x + 0.1 * step, top)])
            colors.append(look.color)
        baselines.append([(x0, y0), (x0 + width, y0)])
        extra = " ".join(str(record[name]) for name in view.varying)
        name = f"{record['method']} {record['point']} {extra}".strip()
        axes.text(x0, y0 + room + 0.19, name[:36], fontsize=6.5, va="center")
        for layer in {0, depth - 1, depth // 2}:
            axes.text(x0 + (layer + 0.5) * step, y0 - 0.07, str(layer + 1), fontsize=6, ha="center", va="center")
        if finite(record["mean_layers"]):
            mean = min(max(record["mean_layers"] - 0.5, 0.0), depth)
            axes.plot([x0 + mean * step], [y0 + room + 0.06], marker="v", markersize=3, color=INK, linestyle="none")
    axes.add_collection(PolyCollection(bars, facecolors=colors, linewidths=0))
    axes.add_collection(LineCollection(baselines, colors=[INK], linewidths=0.6))
    description = f"{title}. One histogram for each of {len(records)} rows that use more than one exit, on one scale."
    return _render(figure, f"exits-{group.slug}", title, description)


_XML_HEAD = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)


def inline_svg(drawing: Drawing) -> str:
    """The SVG for use inside a page: no prolog, ids of its own, ink and paper that follow the page's colours."""
    text = _METADATA.sub("", _XML_HEAD.sub("", drawing.svg))
    prefix = re.sub(r"\W", "_", drawing.name)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'href="#{prefix}-\2"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    for color, variable in ((INK, "var(--ink)"), (FAINT, "var(--line)"), (PAPER, "var(--card)")):
        text = re.sub(color, variable, text, flags=re.IGNORECASE)
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r'<svg role="img" \1\2', text, count=1)
