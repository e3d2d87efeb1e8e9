"""Accuracy against cost. Points name themselves: in words where there is room, and all of them when pointed at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.analysis.view import Group, View
from reports.figures.drawing import Drawing, Spot
from reports.figures.palette import INK, PAPER
from reports.figures.style import Look, new_figure, render
from reports.notation.numbers import finite, fixed, percent, plain, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# (method, variant, setting): points that one line may join.
Key = tuple[str, str, str]
Label = tuple[float, float, str, str]
# More lines than this in a figure: what others dominate steps back, and only what nothing dominates is named in words.
CROWD = 14
FAR = 2


def series(records: Sequence[dict[str, Any]], varying: Sequence[str]) -> dict[Key, list[dict[str, Any]]]:
    """Points that one line may join: same method, same variant (``once`` of ``speed=0.5/once``), same setting."""
    together: dict[Key, list[dict[str, Any]]] = {}
    for record in records:
        variant = record["point"].partition("/")[2]
        setting = " ".join(str(record[name]) for name in varying)
        together.setdefault((record["method"], variant, setting), []).append(record)
    return together


def frontier(records: Sequence[Mapping[str, Any]], cost: str) -> list[int]:
    """Indices of methods' points that no other method's point dominates, from the cheapest on.

    A point is dominated by one that is at least as accurate and as cheap, and better in one of the two. Controls and bounds
    take no part. ``samples_per_s`` is a cost in reverse.
    """

    def worth(at: int) -> tuple[float, float]:
        price = records[at][cost]
        return (-price if cost == "samples_per_s" else price), -records[at]["accuracy"]

    found: list[int] = []
    for at in sorted((i for i, r in enumerate(records) if r["kind"] == "method"), key=worth):
        if not found or worth(at)[1] < worth(found[-1])[1] or worth(at) == worth(found[-1]):
            found.append(at)
    return found


def floor_of(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Where the axis of accuracy is cut, in 0..1, so that a few that failed do not press all others into a line.

    Below the cut lies at most a tenth of the points, farther from the others than :data:`FAR` times what those span. ``None``
    where there are no such points.
    """
    ranked = sorted(records, key=lambda r: r["accuracy"])
    values = [r["accuracy"] for r in ranked]
    for below in range(len(values) // 10, 0, -1):
        span = values[-1] - values[below]
        if span > 0 and values[below] - values[below - 1] > FAR * span:
            rest = [r["accuracy_low"] if finite(r["accuracy_low"]) else r["accuracy"] for r in ranked[below:]]
            floor = min(rest) - span / 4
            return float(floor) if floor > values[below - 1] else None
    return None


def short_point(point: str) -> str:
    """What a label in a crowded figure says: the value of ``name=value``, without its variant."""
    return point.partition("/")[0].rpartition("=")[2]


def describe(record: Mapping[str, Any], varying: Sequence[str]) -> str:
    """What a point says when it is pointed at."""
    setting = " ".join(str(record[name]) for name in varying)
    name = " ".join(part for part in (record["method"], record["point"], setting) if part)
    if record["kind"] == "bound":
        name += " (bound, not a method)"
    return (
        f"{name}: accuracy {percent(record['accuracy'])} %, {fixed(record['mean_layers'])} layers, "
        f"FLOPs ratio {times(record['ratio_linear'])}, {plain(record['samples_per_s'])} samples/s, "
        f"speed-up {times(record['speedup'])}"
    )


def draw_pareto(view: View, group: Group, chosen: dict[str, Look], cost: str, word: str) -> Drawing:
    """Accuracy against one cost; the points of a line are joined in order of cost."""
    what = "FLOPs" if word == "flops" else "throughput"
    title = f"Accuracy against {what}: {group.label}"
    records = [r for r in view.records(group) if finite(r[cost]) and finite(r["accuracy"]) and r[cost] > 0]
    lines = series(records, view.varying)
    variants = {name: sorted({key[1] for key in lines if key[0] == name}) for name in {key[0] for key in lines}}
    noise = _noise_spans(records) if word == "throughput" else []
    entries = {(key[0], key[2]) if chosen[key[0]].line == "--" else key for key in lines}
    legend_rows = math.ceil((len(entries) + bool(noise) + 1) / 2)
    height = 4.2 + 0.16 * legend_rows
    figure, axes = new_figure(6.0, height)
    axes.set_position((0.11, (0.16 * legend_rows + 0.55) / height, 0.86, 3.3 / height))
    labels: list[Label] = []
    named: set[str] = set()
    best = [records[at] for at in frontier(records, cost)]
    crowded = len(entries) > CROWD
    if len(best) > 1:
        x, y = [r[cost] for r in best], [100 * r["accuracy"] for r in best]
        axes.plot(x, y, color=INK, alpha=0.18, lw=3, drawstyle="steps-post", zorder=1, label="dominated by none")
    for (method, variant, setting), points in lines.items():
        points = sorted(points, key=lambda r: r[cost])
        second = variants[method].index(variant) % 2 == 1
        legend = _legend(points[0], variant, setting)
        behind = crowded and not any(p in best or p["is_reference"] for p in points)
        shown = "_" if legend in named else legend
        _plot(axes, points, cost, chosen[method], hollow=second, legend=shown, behind=behind)
        named.add(legend)
        if crowded:
            told = [p for p in points if p in best or p["is_reference"]]
            # Budgets that chose one and the same setting are one point: on a FLOPs axis exactly, named once.
            once = {(p["accuracy"], p["flops_linear"]): p for p in reversed(told)}
            labels += [
                (p[cost], 100 * p["accuracy"], f"{method} {_setting_of(p)}".strip(), chosen[method].color)
                for p in told
                if once[p["accuracy"], p["flops_linear"]] is p
            ]
        elif points[0]["kind"] == "method" and variant == variants[method][0]:
            labels += _labels(points, cost, chosen[method])
    for number, (low, high) in enumerate(noise):
        axes.axvspan(low, high, color=INK, alpha=0.09, lw=0, label="_" if number else "reference against itself (A/A)")
    _scale(axes, [r[cost] for r in records], word)
    floor = floor_of(records)
    if floor is not None:
        labels += _cut(axes, records, cost, chosen, floor)
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
    spots: list[Spot] = []
    if records:
        shown_at = [max(r["accuracy"], floor or 0.0) for r in records]
        pixels = axes.transData.transform([(r[cost], 100 * y) for r, y in zip(records, shown_at, strict=True)])
        # Points of a 72nd inch, from the top.
        spots = [
            (72 * px / figure.dpi, 72 * (height - py / figure.dpi), describe(record, view.varying))
            for (px, py), record in zip(pixels, records, strict=True)
        ]
    description = (
        f"{title}. {len(records)} points of {len(variants)} methods; all numbers are in the table results-{group.slug}."
    )
    return render(figure, f"pareto-{word}-{group.slug}", title, description, role="pareto", spots=spots)


def _noise_spans(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Samples a second that the reference has by chance."""
    return [
        (r["samples_per_s"] * r["noise"].low, r["samples_per_s"] * r["noise"].high)
        for r in records
        if r["is_reference"] and r["noise"] is not None
    ]


def _legend(record: Mapping[str, Any], variant: str, setting: str) -> str:
    # Variants of a control look alike and share one line of the legend.
    told = variant and record["kind"] != "control"
    legend = " ".join(part for part in (record["method"], f"({variant})" if told else "", setting) if part)
    return legend + (" (bound, not a method)" if record["kind"] == "bound" else "")


def _setting_of(record: Mapping[str, Any]) -> str:
    return short_point(record["point"]) if "=" in record["point"] else ""


def _plot(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    cost: str,
    look: Look,
    *,
    hollow: bool,
    legend: str,
    behind: bool,
) -> None:
    y = [100 * p["accuracy"] for p in points]
    low = [max(0.0, 100 * (p["accuracy"] - p["accuracy_low"])) if finite(p["accuracy_low"]) else 0.0 for p in points]
    high = [max(0.0, 100 * (p["accuracy_high"] - p["accuracy"])) if finite(p["accuracy_high"]) else 0.0 for p in points]
    front = points[0]["kind"] == "method"
    axes.errorbar(
        [p[cost] for p in points],
        y,
        yerr=[low, high],
        color=look.color,
        marker=look.marker,
        markersize=9 if look.marker == "*" else 5,
        linestyle=look.line,
        linewidth=1.2 if front and not behind else 0.8,
        elinewidth=0.5,
        markerfacecolor=PAPER if hollow or look.hollow else look.color,
        markeredgecolor=look.color,
        markeredgewidth=1.0,
        label=legend,
        zorder=3 if front else 2,
        alpha=0.35 if behind else 1.0 if front else 0.9,
    )


def _cut(
    axes: Axes, records: Sequence[Mapping[str, Any]], cost: str, chosen: Mapping[str, Look], floor: float
) -> list[Label]:
    """End the axis at ``floor``; what lies below stands on it as an arrow and says how low it is."""
    top = max(r["accuracy_high"] if finite(r["accuracy_high"]) else r["accuracy"] for r in records)
    axes.set_ylim(100 * floor, 100 * (top + (top - floor) / 20))
    found: list[Label] = []
    for r in records:
        if r["accuracy"] >= floor:
            continue
        color = chosen[r["method"]].color
        axes.plot([r[cost]], [100 * floor], marker=7, markersize=7, color=color, clip_on=False, zorder=4, label="_")
        name = f"{r['method']} {_setting_of(r)}".strip()
        found.append((r[cost], 100 * (floor + (top - floor) / 20), f"{name}: {percent(r['accuracy'])} %", color))
    return found


def _labels(points: Sequence[Mapping[str, Any]], cost: str, look: Look) -> list[Label]:
    """A lone point says its method; on a line each says its setting, and the dearest end the method too."""
    end = points[0] if cost == "samples_per_s" else points[-1]
    found = []
    for p in points:
        text = short_point(p["point"]) if len(points) > 1 else ""
        name = f"{p['method']} {text}".strip() if p is end else text
        found.append((p[cost], 100 * p["accuracy"], name, look.color))
    return found


def _scale(axes: Axes, values: Sequence[float], word: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if values and max(values) / min(values) > 6:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif values:
        axes.set_xlim(left=0)
    divisor, prefix = (1e9, "G") if word == "flops" and max(values, default=0) >= 1e9 else (1e6, "M")
    if word == "throughput":
        divisor, prefix = 1.0, ""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:,g}"))
    axes.set_xlabel(
        f"{prefix}FLOPs per sample, linear layers (fewer is better)"
        if word == "flops"
        else "samples/s (more is better)"
    )


def _place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Put each label beside its point where nothing else is; where there is no room, try fewer words, then none."""
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
                centre = ((place[0] + place[2]) / 2 - px, (place[1] + place[3]) / 2 - py)
                axes.annotate(
                    words,
                    (x, y),
                    xytext=(centre[0] / scale, centre[1] / scale),
                    textcoords="offset points",
                    fontsize=7,
                    ha="center",
                    va="center",
                    color=color,
                    zorder=5,
                )
                break


Box = tuple[float, float, float, float]


def _free_place(
    px: float, py: float, text: str, scale: float, taken: Sequence[Box], frame: tuple[float, float]
) -> Box | None:
    """A box for ``text`` near a point, in pixels, that touches no taken one and stays between the sides of the axes."""
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
