"""Labels of crowded points cover neither each other nor the frame."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from reports.figures.drawing import new_figure
from reports.figures.label_places import place_all_labels

spots = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6)


@given(spots)
@settings(max_examples=15, deadline=None)
def test_labels_do_not_overlap(points):
    """Every label is written inside the axes, and none covers another one as long as all of them found a free place."""
    figure, axes = new_figure(3, 3)
    axes.set_xlim(-0.2, 1.2)
    axes.set_ylim(-0.2, 1.2)
    crowded = place_all_labels(axes, [(x, y, f"name {i}", "black") for i, (x, y) in enumerate(points)], [], 6)
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == len(points) and crowded == 0
    assert all(axes.bbox.x0 - 1 <= box.x0 and box.x1 <= axes.bbox.x1 + 1 for box in boxes)
    for a, b in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) < 2, "boxes of glyphs have some air above and below"
