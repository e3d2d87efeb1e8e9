"""The fabricated run, at a small size."""

from __future__ import annotations

import re

import pytest

from reports.analysis.view import build_view
from reports.scale import METHODS, main, points_of


def test_a_small_run_has_the_shape_of_a_large_one(tmp_path, capsys):
    """The run has every method at every point and seed, marked synthetic, and its report is written and measured."""
    assert main(["--datasets", "1", "--seeds", "2", "--samples", "60", "--out", str(tmp_path / "run")]) == 0
    points = sum(len(points_of(method)) for method in METHODS)
    said = re.fullmatch(r"(\d+) cells of 60 samples: report in [\d.]+ s; page [\d.]+ MB; .*\n", capsys.readouterr().out)
    assert said and int(said[1]) == 2 * points
    view = build_view(tmp_path / "run")
    assert view.synthetic and len(view.rows) == points and len(view.verdicts) and len(view.predictors)
    assert view.caveats == [] and {row.marks for row in view.rows} == {""}


@pytest.mark.parametrize("option", ["--datasets", "--seeds", "--samples"])
def test_values_below_one_are_bad_input(option, capsys):
    """Values below one are refused with one line."""
    with pytest.raises(SystemExit) as stopped:
        main([option, "0"])
    assert stopped.value.code == 2 and "must be 1 or more" in capsys.readouterr().err
