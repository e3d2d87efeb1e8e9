"""The table on the terminal."""

from __future__ import annotations

import unicodedata

from reports.terminal import WIDTH, summary


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def test_fits_the_terminal(plausible_run):
    """No line is wider than 110 columns, and every method has a line in every dataset."""
    text = summary(plausible_run)
    assert max(width(line) for line in text.splitlines()) <= WIDTH == 110
    assert text.count("geep-verified speed=0.5/once") == 2
    assert "a_b & <c> (synthetic)" in text and "controls and bounds" in text


def test_long_and_wide_names_fit(fabricate):
    """Long names and Chinese names are cut to the column."""
    run = fabricate()
    run.cell("m" * 70, dataset="情感分析数据集" * 4, device="cuda" * 40)
    run.cell("bert", dataset="情感分析数据集" * 4, notes=["x" * 300])
    assert max(width(line) for line in summary(run.path).splitlines()) <= WIDTH


def test_numbers_and_missing_values(fabricate):
    """A line holds accuracy, layers, FLOPs ratio, samples/s and speed-up; missing values are dashes."""
    run = fabricate()
    run.cell("bert", accuracy=0.9, samples_per_s=100)
    run.cell("fastbert", "speed=0.5", accuracy=0.85, layers=3, speedup=None, samples_per_s=150)
    lines = {line.split()[0]: line.split() for line in summary(run.path).splitlines() if line}
    assert lines["bert"][2:] == ["90.0", "6.00", "1.00×", "100", "1.00×"]
    assert lines["fastbert"][2:] == ["85.0", "3.00", "2.00×", "150", "—"]


def test_controls_alone_are_shown(fabricate):
    """A run of controls alone still has a table."""
    run = fabricate()
    run.cell("control-random", "speed=0.5", kind="control")
    assert "control-random" in summary(run.path)
