"""Figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reports.drawing import inline_svg
from reports.figures import draw_figures
from reports.pareto import short_point
from reports.sheet import looks
from reports.view import build_view


def test_every_method_looks_different(plausible_run):
    """No two methods of a run share both colour and marker, so that print without colour tells them apart."""
    chosen = looks(build_view(plausible_run, samples=False))
    assert len({(look.color, look.marker) for look in chosen.values()}) == len(chosen)
    assert len({look.marker for name, look in chosen.items() if not name.startswith("control")}) == len(
        [name for name in chosen if not name.startswith("control")]
    )


def test_inlined_figure_follows_the_page(plausible_run):
    """Ink and grid take the page's colours, ids get the figure's name, and the prolog is gone."""
    view = build_view(plausible_run, samples=False)
    drawing = draw_figures(view, view.groups[0])[0]
    text = inline_svg(drawing)
    assert text.startswith("<svg ") and "var(--ink)" in text and "#222324" not in text and "<metadata" not in text
    assert drawing.title in drawing.svg


def test_no_histogram_where_everything_leaves_at_one_layer(fabricate):
    """A run without early exit has no exit figure."""
    run = fabricate()
    run.cell("bert", histogram=[0, 0, 0, 0, 0, 200])
    view = build_view(run.path)
    assert [drawing.name.split("-")[0] for drawing in draw_figures(view, view.groups[0])] == ["pareto", "pareto"]


@given(st.text(max_size=20))
def test_short_point_is_never_longer(text):
    """Labels only ever get shorter than the point's name."""
    assert len(short_point(text)) <= len(text)


def test_short_point():
    """A label is the value of the setting."""
    assert [short_point(p) for p in ("speed=0.5", "speed=0.5/once", "full")] == ["0.5", "0.5", "full"]
