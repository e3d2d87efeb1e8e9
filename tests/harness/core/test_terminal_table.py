"""Tables on the terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from harness.core.terminal_table import terminal_table

ROWS = [["fastbert speed=0.5", "85.0", "2.00×"], ["情感 [red]:smile:", "100.0", "—"]]


def test_columns_are_aligned_and_text_is_plain():
    """Names are left-aligned, numbers right-aligned, markup and emoji codes are plain text, and notes follow the table."""
    assert terminal_table(["ag_news", "acc. %", "speed-up"], ROWS, notes=["— not measured"]).splitlines() == [
        "ag_news             acc. %  speed-up",
        "------------------------------------",
        "fastbert speed=0.5    85.0     2.00×",
        "情感 [red]:smile:    100.0         —",
        "— not measured",
    ]


def test_only_the_first_column_is_cut():
    """At any width limit, names end with an ellipsis and numbers are complete."""
    lines = terminal_table(["name", "n"], [["n" * 80, "123,456,789.5"]], width=40).splitlines()
    assert lines[-1] == "n" * 24 + "…  123,456,789.5"
    assert "123,456,789.5" in terminal_table(["name", "n"], [["n" * 80, "123,456,789.5"]], width=5)


def test_a_list_has_no_heading_line():
    """Without headings there are only rows; several columns can be left-aligned."""
    assert terminal_table(["", ""], [["a", "long text"], ["bcd", "x"]], left=2) == "a    long text\nbcd  x\n"


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "COLUMNS"])
def test_the_environment_has_no_effect(monkeypatch, variable):
    """Forced colours and the terminal's width do not change the text."""
    before = terminal_table(["a", "b"], ROWS_OF_TWO)
    monkeypatch.setenv(variable, "3")
    assert terminal_table(["a", "b"], ROWS_OF_TWO) == before


ROWS_OF_TWO = [["a" * 90, "1" * 90]]


@given(st.lists(st.tuples(st.text("ab[]:é情 ", max_size=30), st.text("0123456789.,×", min_size=1)), min_size=1))
def test_no_number_is_lost(rows):
    """Every number is complete, and lines are only as wide as the widest name and numbers."""
    lines = terminal_table(["name", "value"], rows).splitlines()[2:]
    assert [line.split()[-1] for line in lines] == [number for _, number in rows]
    assert max(map(cell_len, lines)) <= 2 + max(4, *(cell_len(n) for n, _ in rows)) + max(5, *(len(v) for _, v in rows))
