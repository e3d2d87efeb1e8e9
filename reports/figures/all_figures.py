"""The figures of a dataset: accuracy against cost, where samples leave, how well that was predicted, and what was lost."""

from __future__ import annotations

import math
from typing import Any

from reports.analysis.prediction_quality import draw_confusion
from reports.analysis.view import Group, View, file_slug
from reports.figures.drawing import Drawing
from reports.figures.palette import INK
from reports.figures.pareto import draw_pareto
from reports.figures.style import STYLE, Look, looks, new_figure, render
from reports.figures.waterfall import draw_waterfalls
from reports.notation.numbers import finite
from reports.tables.breakdown import predictor_records

_PANELS = 4  # histograms a row
_MOST_PANELS = 36


def draw_figures(view: View, group: Group) -> list[Drawing]:
    """The figures of one dataset, in the order shown."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        chosen = looks(view)
        drawings = [
            draw_pareto(view, group, chosen, "flops_linear", "flops"),
            draw_pareto(view, group, chosen, "samples_per_s", "throughput"),
        ]
        exits = _exits(view, group, chosen)
    confusion = _confusion(view, group)
    return [*drawings, *(one for one in (exits, confusion) if one), *_waterfalls(view, group)]


def _waterfalls(view: View, group: Group) -> list[Drawing]:
    """One figure per method whose speed-up was taken apart, a panel per operating point."""
    together: dict[str, list[dict[str, Any]]] = {}
    for record in view.records(group):
        if record["waterfall"] is not None and not record["is_reference"]:
            together.setdefault(record["method"], []).append(record)
    drawings = []
    for method, records in together.items():
        title = f"Speed-up of {method} taken apart: {group.label}"
        rows = [
            (" ".join([str(r["point"]), *(str(r[name]) for name in view.varying)]), r["waterfall"]) for r in records
        ]
        svg, description = draw_waterfalls(title, rows, records[0]["noise"])
        name = f"waterfall-{file_slug(method)}-{group.slug}"
        drawings.append(Drawing(name, title, description, svg, role="waterfall", about=method))
    return drawings


def _confusion(view: View, group: Group) -> Drawing | None:
    """Predicted against sequential exits, methods beside controls."""
    records = predictor_records(view, group)
    if not records:
        return None
    title = f"Predicted and sequential exits: {group.label}"
    svg, description = draw_confusion(title, records)
    return Drawing(f"confusion-{group.slug}", title, description, svg, role="confusion")


def _exits(view: View, group: Group, chosen: dict[str, Look]) -> Drawing | None:
    """Small multiples of the exit histograms, drawn on one pair of axes because many axes are slow."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    records = [r for r in view.records(group) if sum(1 for count in r["histogram"] if count) > 1]
    if not records:
        return None
    # A control that mirrors a row shown has its histogram by construction: once is enough.
    total = len(records)
    shown: list[dict[str, Any]] = []
    seen: set[tuple[object, ...]] = set()
    for record in records:
        key = (record["point"].partition("/")[0], *record["histogram"], *(str(record[n]) for n in view.varying))
        if record["kind"] != "control" or key not in seen:
            shown.append(record)
        seen.add(key)
    records = shown[:_MOST_PANELS]
    left_out = total - len(records)
    highest = max(count / sum(r["histogram"]) for r in records for count in r["histogram"])
    rows = math.ceil(len(records) / _PANELS)
    title = f"Where samples leave: {group.label}"
    height = 0.62 + 0.86 * rows
    figure, axes = new_figure(7.6, height)
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
    bars: dict[str, list[Path]] = {}
    baselines = []
    for number, record in enumerate(records):
        x0, y0 = number % _PANELS + 0.03, -(number // _PANELS) - 0.86
        counts, look = record["histogram"], chosen[record["method"]]
        tallest, depth, width, room = highest * sum(counts), len(counts), 0.9, 0.52
        step = width / depth
        for layer, count in enumerate(counts):
            x, top = x0 + layer * step, y0 + room * count / tallest
            if count:
                corners = [(x + 0.1 * step, y0), (x + 0.9 * step, y0), (x + 0.9 * step, top), (x + 0.1 * step, top)]
                bars.setdefault(look.color, []).append(Path([*corners, corners[0]], closed=True))
        baselines.append(Path([(x0, y0), (x0 + width, y0)]))
        extra = " ".join(str(record[name]) for name in view.varying)
        name = f"{record['method']} {record['point']} {extra}".strip()
        axes.text(x0, y0 + room + 0.19, name[:36], fontsize=6.5, va="center")
        for layer in {0, depth - 1, depth // 2}:
            axes.text(x0 + (layer + 0.5) * step, y0 - 0.07, str(layer + 1), fontsize=6, ha="center", va="center")
        if finite(record["mean_layers"]):
            mean = min(max(record["mean_layers"] - 0.5, 0.0), depth)
            axes.plot([x0 + mean * step], [y0 + room + 0.06], marker="v", markersize=3, color=INK, linestyle="none")
    # One path per colour: hundreds of bars of their own would be slow to draw and large to load.
    for color, paths in bars.items():
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), facecolor=color, linewidth=0))
    axes.add_patch(PathPatch(Path.make_compound_path(*baselines), edgecolor=INK, linewidth=0.6, fill=False))
    description = f"{title}. One histogram for each of {len(records)} rows that use more than one exit, on one scale."
    return render(figure, f"exits-{group.slug}", title, description, role="exits")
