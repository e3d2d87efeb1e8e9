"""Tables as Markdown, CSV, LaTeX."""

from __future__ import annotations

import io
import math
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.analysis.view import build_view
from reports.notation.numbers import DASH, flops_unit, p_value, percent, plain, points, times
from reports.notation.table_formats import Column, Table, escape_latex, escape_markdown, to_csv, to_latex, to_markdown
from reports.tables.result_tables import results_table, summary_tables

NASTY = "a_b & <c>"


@given(st.sampled_from([None, math.nan, math.inf, -math.inf, "x", True]))
def test_missing_values_are_a_dash(value):
    """A value that is not a finite number is an em dash, never 0."""
    assert {plain(value), percent(value), times(value), points(value), p_value(value)} == {DASH}


@given(st.floats(1e-6, 1e12))
def test_plain_numbers_keep_their_value(value):
    """Any size of number has three significant digits."""
    assert float(plain(value).replace(",", "")) == pytest.approx(value, rel=0.006)


def test_units_follow_the_largest_value():
    """FLOPs are printed in the unit of the largest value."""
    assert flops_unit(21_785_247_744) == (1e9, "G")
    assert flops_unit(2e6) == (1e6, "M")


def test_markdown_escapes():
    """No name becomes markup, HTML or a column."""
    assert escape_markdown(NASTY + " | *x*\n`y`") == r"a\_b &amp; &lt;c&gt; \| \*x\* \`y\`"


def test_latex_escapes():
    """Every special character of LaTeX is printed as itself."""
    assert escape_latex(r"a_b & 5% {x} \y ~ ^ #1 $") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} \#1 \$"
    )


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=30))
def test_latex_has_no_unescaped_character(text):
    """After escaping, special characters occur only in known commands."""
    cleaned = re.sub(r"\\textbackslash\{\}|\\text\w+\{\}|\\[&%$#_{}]|\$\\\w+\$|\$-\$", "", escape_latex(text))
    assert not set(cleaned) & set("&%$#_{}~^\\")


@given(st.text(max_size=20))
def test_markdown_rows_keep_their_columns(text):
    """A cell with any text leaves the number of columns unchanged."""
    table = Table(
        "t",
        "c",
        [(text, 1)],
        [Column("a", "A", lambda row: row[0], numeric=False), Column("b", "B", lambda row: plain(row[1]))],
        ("a", "b"),
    )
    (row,) = to_markdown(table).splitlines()[4:5]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3


def test_missing_value_is_explained(fabricate):
    """A dash comes with its reason under the table."""
    run = fabricate()
    run.cell("bert", speedup=None, reference=None)
    run.cell("other", speedup=None, reference=None, backbone="another")
    (table,) = summary_tables(build_view(run.path))
    text = to_markdown(table)
    assert DASH in text and "no reference method was measured" in text


def test_non_finite_speedup_is_a_dash(fabricate):
    """A speed-up that is not finite is shown as missing."""
    run = fabricate()
    run.edit(run.cell("bert"), lambda data: data["speed"].update(speedup=1e999, speedup_p10=1e999, speedup_p90=1e999))
    (table,) = summary_tables(build_view(run.path))
    assert table.cells[0][-1] == DASH


def test_csv_has_raw_numbers(fabricate):
    """The CSV reads back to the exact values, with the word synthetic in each row."""
    run = fabricate()
    run.cell("bert", accuracy=0.123456789)
    view = build_view(run.path)
    back = pd.read_csv(io.StringIO(to_csv(results_table(view, view.groups[0]))))
    assert back.loc[0, "accuracy"] == 0.123456789
    assert back["data"].tolist() == ["synthetic"]


def test_latex_is_booktabs_with_balanced_rows(plausible_run):
    """Every row of the LaTeX table has as many cells as the table has columns."""
    view = build_view(plausible_run, samples=False)
    group = next(group for group in view.groups if group.synthetic)
    table = results_table(view, group)
    text = to_latex(table)
    assert text.count("{") == text.count("}") and r"\toprule" in text and r"a\_b \& \textless{}c\textgreater{}" in text
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == len(table.rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.columns) - 1}


def test_bounds_and_doubtful_rows_are_marked(fabricate):
    """A bound is named; a row whose labels changed between rounds has a dagger with a footnote."""
    run = fabricate()
    run.cell("bert")
    run.cell("oracle", "speed=0.5", kind="bound")
    run.cell("fastbert", "speed=0.5", rounds_agree=0.98)
    (table,) = summary_tables(build_view(run.path))
    text = to_markdown(table)
    assert "oracle (bound, not a method)" in text and "fastbert †" in text and "98.00 %" in text


def test_number_of_seeds_is_stated(fabricate):
    """A table of means states the number of seeds."""
    run = fabricate()
    for seed in (0, 1):
        run.cell("bert", seed=seed, accuracy=0.8 + 0.1 * seed)
    (table,) = summary_tables(build_view(run.path))
    assert any("Means over 2 seeds" in note for note in table.notes)
    assert "7.07 (2; 21.5–100.0)" in table.cells[0]
