"""Heat maps of the grid: a panel per start, kinds of knowledge over matchings, with the interval over seeds in each cell."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from suites.studies.distil_grid.grid_cells import NONE

Summary = Mapping[str, Any]


def heat_maps(title: str, summaries: Sequence[Summary]) -> str:
    """Return an SVG for one dataset.

    Args:
        summaries: of its cells: ``knowledge``, ``matching``, ``init``, ``accuracy`` and ``half`` (half the interval over seeds, or
            ``None``), in percent; ``accuracy`` is ``None`` where all fits failed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    inits, knowledge, matchings = (
        list(dict.fromkeys(one[axis] for one in summaries)) for axis in ("init", "knowledge", "matching")
    )
    matchings.sort(key=lambda name: name != NONE)
    known = [one["accuracy"] for one in summaries if one["accuracy"] is not None] or [0.0]
    low, high = min(known), max(known)
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "geep-bench", "text.parse_math": False, "font.size": 8}
    ):
        size = 1.6 + len(inits) * (0.5 + 0.85 * len(matchings)), 1.4 + 0.5 * len(knowledge)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(title)
        panels = figure.subplots(1, len(inits), squeeze=False, sharey=True)[0]
        for panel, init in zip(panels, inits, strict=True):
            grid = np.full((len(knowledge), len(matchings)), np.nan)
            for one in (each for each in summaries if each["init"] == init):
                place = knowledge.index(one["knowledge"]), matchings.index(one["matching"])
                grid[place] = np.nan if one["accuracy"] is None else one["accuracy"]
                dark = one["accuracy"] is not None and one["accuracy"] < (low + high) / 2
                panel.text(
                    place[1], place[0], shown(one), ha="center", va="center", color="white" if dark else "#222324"
                )
            image = panel.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
            panel.set_title(init)
            panel.set_xticks(range(len(matchings)), matchings, rotation=30)
            panel.set_yticks(range(len(knowledge)), knowledge)
        figure.colorbar(image, ax=list(panels), label="accuracy on test, %")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def shown(one: Summary) -> str:
    """Return the text of a cell: accuracy and half the interval over seeds."""
    if one["accuracy"] is None:
        return "failed"
    return f"{one['accuracy']:.1f}" + ("" if one["half"] is None else f"\n± {one['half']:.1f}")
