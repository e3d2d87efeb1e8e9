"""Figures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.analysis.view import build_view
from reports.figures.dataset_figures import draw_figures
from reports.figures.drawing import inline_svg, looks
from reports.figures.pareto import CROWD, FAR, floor_of, frontier, short_point


def test_every_method_has_its_own_style(plausible_run):
    """No two methods of a run share both colour and marker, so that they differ in print without colour."""
    chosen = looks(build_view(plausible_run, samples=False))
    assert len({(look.color, look.marker) for look in chosen.values()}) == len(chosen)
    assert len({look.marker for name, look in chosen.items() if not name.startswith("control")}) == len(
        [name for name in chosen if not name.startswith("control")]
    )


def test_inlined_figure_uses_the_pages_colours(plausible_run):
    """Ink and grid take the page's colours, and the prolog is removed."""
    view = build_view(plausible_run, samples=False)
    drawing = draw_figures(view, view.groups[0])[0]
    text = inline_svg(drawing)
    assert text.startswith("<svg ") and "var(--ink)" in text and "#222324" not in text and "<metadata" not in text
    assert drawing.title in drawing.svg


def test_no_histogram_without_early_exits(fabricate):
    """A run without early exit has no exit figure."""
    run = fabricate()
    run.cell("bert", histogram=[0, 0, 0, 0, 0, 200])
    view = build_view(run.path)
    assert [drawing.name.split("-")[0] for drawing in draw_figures(view, view.groups[0])] == ["pareto", "pareto"]


def accuracies(*values: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(accuracy=value, low=value - 0.02) for value in values]


def test_outliers_do_not_compress_the_axis():
    """A single point far below the rest is cut off, below the intervals of the rest; many or nearby points are not."""
    rest = [0.80 + i / 100 for i in range(11)]
    assert floor_of(accuracies(0.45, *rest)) == pytest.approx(0.78 - 0.1 / 4)
    assert floor_of(accuracies(*rest)) is None
    assert floor_of(accuracies(0.65, *rest)) is None, "0.65 is not far enough"
    assert floor_of(accuracies(0.45, 0.46, *rest)) is None, "two of thirteen points are too many to cut"
    assert floor_of(accuracies(0.45, 0.46, *rest, *rest)) == pytest.approx(0.78 - 0.1 / 4)
    assert floor_of(accuracies(0.5, *[0.9] * 12)) is None, "equal points have no span to compare with"
    assert floor_of([]) is None


@given(st.lists(st.floats(0, 1), max_size=40))
def test_a_cut_hides_at_most_a_tenth(values):
    """A cut hides at most a tenth of the points, all far below the others."""
    records = [SimpleNamespace(accuracy=value, low=value) for value in values]
    floor = floor_of(records)
    below = [value for value in values if floor is not None and value < floor]
    assert len(below) <= len(values) / 10
    if floor is not None:
        above = [value for value in values if value >= floor]
        assert below and min(above) - max(below) > FAR * (max(above) - min(above))


@given(st.text(max_size=20))
def test_a_label_is_never_longer_than_its_point(text):
    """A label is never longer than the name of the point."""
    assert len(short_point(text)) <= len(text)


def test_a_label_is_the_value_of_the_setting():
    """A label is the value of the setting."""
    assert [short_point(p) for p in ("speed=0.5", "speed=0.5/once", "full")] == ["0.5", "0.5", "full"]


POINTS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["method", "control", "bound"]),
            "flops_linear": st.sampled_from([1.0, 2.0, 3.0]),
            "samples_per_s": st.sampled_from([10.0, 20.0, 30.0]),
            "accuracy": st.sampled_from([0.7, 0.8, 0.9]),
        }
    )
)


@pytest.mark.parametrize(("cost", "sign"), [("flops_linear", 1), ("samples_per_s", -1)])
@given(points=POINTS)
def test_the_frontier_holds_non_dominated_points(points, cost, sign):
    """The frontier holds all non-dominated points of methods, cheapest first; controls and bounds are ignored."""

    def dominates(a, b):
        cheap, right = sign * (b[cost] - a[cost]), a["accuracy"] - b["accuracy"]
        return cheap >= 0 and right >= 0 and (cheap > 0 or right > 0)

    methods = [i for i, p in enumerate(points) if p["kind"] == "method"]
    expected = {i for i in methods if not any(dominates(points[j], points[i]) for j in methods)}
    found = frontier(
        [SimpleNamespace(row=SimpleNamespace(kind=p["kind"]), cost=p[cost], accuracy=p["accuracy"]) for p in points],
        cost,
    )
    assert len(found) == len(set(found)) and set(found) == expected
    assert [sign * points[i][cost] for i in found] == sorted(sign * points[i][cost] for i in found)


def test_only_points_on_the_frontier_are_named_in_a_crowd(fabricate):
    """With twenty methods, only the two on the frontier have labels; the others have none, and there is no legend."""
    run = fabricate()
    run.cell("bert", accuracy=0.9, flops=4e9)
    run.cell("best", accuracy=0.89, flops=1e9)
    for number in range(CROWD + 4):
        run.cell(f"other-{number}", accuracy=0.7 + number / 1000, flops=(2 + number / 100) * 1e9)
    view = build_view(run.path)
    svg = next(d for d in draw_figures(view, view.groups[0]) if d.name.startswith("pareto-flops")).svg
    assert svg.count(">best<") == 1 and svg.count(">other-3<") == 0


def test_points_below_the_axis_show_their_value(fabricate):
    """A point below the axis is an arrow with name and value; pointing at it shows the full description."""
    run = fabricate()
    run.cell("failed", accuracy=0.3, flops=5e8)
    for number in range(12):
        run.cell(f"other-{number}", accuracy=0.8 + number / 1000, flops=(2 + number / 100) * 1e9)
    view = build_view(run.path)
    for drawing in draw_figures(view, view.groups[0]):
        if drawing.name.startswith("pareto"):
            assert "failed: 30.0 %" in drawing.svg
            assert "failed full: accuracy 30.0 %" in drawing.svg
