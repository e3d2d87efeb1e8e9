"""A/A noise beside every ratio."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.analysis.time_ratios import FEWEST, noise_band
from reports.analysis.view import build_view
from reports.notation.table_formats import to_markdown
from reports.tables.catalogue import Contents
from reports.terminal import summary

seconds = st.lists(st.floats(0.01, 100), min_size=2, max_size=8)


@given(st.lists(seconds, min_size=FEWEST, max_size=8))
def test_band_is_symmetric_and_ignores_units(passes):
    """The band is the same in milliseconds and in reverse order, and it is symmetric around 1."""
    band = noise_band(passes)
    assert band is not None and band.low * band.high == pytest.approx(1) and band.low <= 1 <= band.high
    assert noise_band([[1000 * value for value in one] for one in passes]).high == pytest.approx(band.high)
    assert noise_band([one[::-1] for one in passes]).high == pytest.approx(band.high)
    assert band.pairs == sum(len(one) - 1 for one in passes)


def test_alternating_passes_by_hand():
    """Passes that alternate between 1 and 2 seconds give a band of a factor of two."""
    band = noise_band([[1.0, 2.0] * 5])
    assert band is not None and (band.low, band.high, str(band)) == (0.5, 2.0, "0.50–2.00×")


def test_few_or_broken_passes_give_no_band():
    """Too few pairs give no band; series with zero or NaN seconds are left out."""
    assert noise_band([[1.0, 1.0]] * (FEWEST - 1)) is None
    assert noise_band([[1.0, 0.0, math.nan]] * 9) is None
    assert noise_band([]) is None


def make(fabricate):
    run = fabricate()
    passes = {"reference_seconds": [1.0, 1.1, 1.0, 1.1]}
    run.cell("bert", **passes)
    run.cell("geep", "speed=0.5", factors={"layers": 2.0}, **passes)
    run.cell("control-random", "speed=0.5", kind="control", **passes)
    return run


def test_every_ratio_of_times_has_a_band(fabricate):
    """Every table with a ratio of times has the band next to it and explains it in a note."""
    contents = Contents(build_view(make(fabricate).path))
    timed = [
        table
        for table in contents.all
        if {"speedup", "measured", "rival_speedup"} & {column.key for column in table.columns}
    ]
    wanted = {"summary", "results", "waterfall", "anatomy", "rivals"}
    assert {table.name.split("-")[0] for table in timed} == wanted
    for table in timed:
        keys = [column.key for column in table.columns]
        ratio = max(keys.index(key) for key in ("speedup", "measured", "rival_speedup") if key in keys)
        assert keys[ratio + 1] == "noise_high", table.name
        assert "0.91–1.10×" in to_markdown(table)
    for table in (*contents.named("summary"), *(t for t in timed if t.name.startswith("waterfall"))):
        assert any("A/A noise: 10th to 90th percentile" in note for note in table.notes)


def test_terminal_has_one_line_of_noise_per_dataset(fabricate):
    """The summary has one line of noise per dataset."""
    assert summary(make(fabricate).path).count("0.91–1.10×") == 1


def test_datasets_have_separate_bands(fabricate):
    """Each dataset has its own band."""
    run = make(fabricate)
    for method in ("bert", "geep", "fastbert"):
        run.cell(method, dataset="calm", reference_seconds=[1.0, 1.0, 1.0, 1.0])
    view = build_view(run.path)
    assert sorted(view.noise_of(group) for group in view.groups) == ["0.91–1.10×", "1.00–1.00×"]


def test_a_changed_speed_of_the_machine_is_a_caveat(fabricate):
    """If the reference is much slower for one cell than for another, there is a caveat; normal noise gives none."""
    run = make(fabricate)
    assert not any("not equally fast" in caveat for caveat in build_view(run.path).caveats)
    run.cell("fastbert", "speed=0.5", reference_seconds=[4.0, 4.1, 4.0])
    (line,) = [caveat for caveat in build_view(run.path).caveats if "not equally fast" in caveat]
    assert "from 1.05 to 4 s" in line and line.startswith("ag_news (synthetic)")


def test_older_results_have_no_band(fabricate):
    """Results without single passes show a dash with the reason."""
    run = fabricate()
    run.cell("bert")
    view = build_view(run.path)
    assert view.noise_of(view.groups[0]) == ""
    (table,) = Contents(view).named("summary")
    assert table.cells[0][-1] == "—" and any("fewer than" in note for note in table.notes)
