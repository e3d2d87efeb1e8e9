"""Factors of the speed-up."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results.schema import Factor, SpeedupFactors
from reports.analysis.time_ratios import LOSSES, Noise, largest_loss, mean_over_seeds
from reports.analysis.view import build_view
from reports.figures.dataset_figures import draw_figures
from reports.figures.factor_panels import draw_factor_panels
from reports.tables.speed_tables import factor_table

ratios = st.floats(0.01, 100)


def make(factors: dict[str, float]) -> SpeedupFactors:
    product = math.prod(factors.values())
    return SpeedupFactors(
        factors=[Factor(name=name, ratio=ratio, what=f"why {name}") for name, ratio in factors.items()],
        product=product,
        measured=product,
    )


@given(st.lists(st.dictionaries(st.sampled_from(list(LOSSES)), ratios, min_size=1), min_size=1, max_size=4))
def test_factors_over_seeds_still_multiply_to_the_speedup(seeds):
    """Geometric means keep the product exact, also where a seed lacks a factor, and names keep their order."""
    mean = mean_over_seeds([make(seed) for seed in seeds])
    assert mean is not None
    assert math.prod(f.ratio for f in mean.factors) == pytest.approx(mean.measured, rel=1e-9)
    names = [factor.name for factor in mean.factors]
    assert names == [name for name in LOSSES if name in names]


def test_invalid_factors_are_left_out():
    """A seed with a factor of zero or NaN is left out, and the report continues."""
    assert mean_over_seeds([make({"layers": math.nan})]) is None
    assert mean_over_seeds([make({"layers": 0.0}), make({"layers": 2.0})]) == make({"layers": 2.0})
    assert mean_over_seeds([]) is None


def test_the_largest_loss_is_named():
    """The smallest factor below 1 is the loss; gains and rounding errors are not."""
    loss = largest_loss(make({"layers": 3.0, "heads": 0.9, "kernels": 0.5}))
    assert loss is not None and loss.name == "kernels"
    assert largest_loss(make({"layers": 3.0, "rest": 0.999})) is None


def test_table_has_every_factor_and_its_reason(fabricate):
    """Each factor is a column, the largest loss is in words, and the note explains each loss."""
    run = fabricate()
    run.cell("bert", factors={"layers": 1.0})
    run.cell("geep", "speed=0.5", factors={"layers": 2.0, "heads": 0.9, "kernels": 0.7})
    run.cell("fastbert", "speed=0.5", factors={"FLOPs": 2.0, "kernels": 0.9})
    view = build_view(run.path)
    table = factor_table(view, view.groups[0])
    assert table is not None
    assert [column.label for column in table.columns][2:6] == ["layers", "heads", "FLOPs", "kernels"]
    fast, geep = table.cells  # the reference has no factors
    assert geep[2:7] == ["2.00×", "0.900×", "—", "0.700×", "1.26×"]
    assert geep[-1] == "kernels 0.700×: about kernels"
    assert fast[2:7] == ["—", "—", "2.00×", "0.900×", "1.80×"]
    assert any("kernels: the same FLOPs take longer" in note for note in table.notes)
    assert any("has no such step" in note for note in table.notes)


def test_older_results_have_no_waterfall(fabricate):
    """Without factors there is neither table nor figure; a single row without them shows a dash."""
    run = fabricate()
    run.cell("bert")
    run.cell("geep", "speed=0.5")
    view = build_view(run.path)
    assert factor_table(view, view.groups[0]) is None
    assert not [d for d in draw_figures(view, view.groups[0]) if d.role == "waterfall"]
    run.cell("fastbert", "speed=0.5", factors={"layers": 2.0})
    view = build_view(run.path)
    table = factor_table(view, view.groups[0])
    assert table is not None and [row[2] for row in table.cells] == ["2.00×", "—"]


def test_titles_are_never_cut():
    """A long title is complete and inside the frame, so the word synthetic at its end is visible."""
    title = "Factors of the speed-up of a-method: " + "name " * 20 + "(synthetic)"
    svg, _ = draw_factor_panels(title, [("full", make({"layers": 2.0}))], None)
    assert f">{title}</text>" in svg and float(ElementTree.fromstring(svg).get("width")) > 700


def test_a_figure_per_method(fabricate):
    """Each method has a figure with a panel per operating point; every bar has its factor and reason as a description."""
    run = fabricate()
    run.cell("bert")
    for speed in ("0.1", "0.5"):
        run.cell("geep", f"speed={speed}", factors={"layers": 2.0, "heads": 0.9})
    run.cell("fastbert", "speed=0.5", factors={"layers": 2.0, "<&>": 0.5})
    view = build_view(run.path)
    falls = {d.about: d for d in draw_figures(view, view.groups[0]) if d.role == "waterfall"}
    assert set(falls) == {"geep", "fastbert"}
    assert falls["geep"].name == "waterfall-geep-ag_news-synthetic" and "synthetic" in falls["geep"].title
    texts = " ".join(ElementTree.fromstring(falls["geep"].svg).itertext())
    assert "speed=0.1: 1.80×" in texts and "speed=0.5: 1.80×" in texts and "heads 0.900×: about heads" in texts
    assert "<&> 0.500×" in " ".join(ElementTree.fromstring(falls["fastbert"].svg).itertext())


@given(
    st.lists(st.dictionaries(st.sampled_from(list(LOSSES)), st.floats(1e-3, 1e3), min_size=1), min_size=1, max_size=7)
)
def test_any_ratios_can_be_drawn(several):
    """With any factors, the figure is well-formed and all text is inside its frame."""
    svg, _ = draw_factor_panels("t", [(f"p{i}", make(one)) for i, one in enumerate(several)], Noise(0.9, 1 / 0.9, 9))
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.get("x")) <= width and 0 <= float(text.get("y")) <= height
