"""Texts of foreign run folders control neither the terminal, nor the page, nor a spreadsheet."""

from __future__ import annotations

import io
import json
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.main import main
from harness.core.names import clean, clean_all, csv_value, from_csv
from harness.regression.compare import compare
from harness.results.packed_run import load, pack, write
from reports.analysis.view import build_view
from reports.build import write_report
from reports.comparison import render
from reports.notation.table_formats import Column, Table, to_csv
from reports.terminal import summary

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202ereversed\u2028\r\x00"
FORMULAS = ("=1+2", "+x", "-x", "@x", "\t=1", "\r=1")
APOSTROPHES = ("-1", "+2.5", "'-1", "''=", "'")


def is_safe(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def hostile(fabricate):
    """Write a run with control characters in every free text, and a point that is a formula."""
    run = fabricate("hostile\x1b[2J")
    run.cell("bert", "=1+2", layers=6)
    for method in ("bert", "geep"):
        result = run.cell(method, notes=["x"], fingerprint={"cpu": "x"}, layers=6)
        run.edit(result, lambda data: data.update(notes=[ESCAPES], fingerprint={f"a{ESCAPES}": ESCAPES}))
    for name in ("broken", "ag_news--bert--full\x1b[2J--seed0--0"):
        (run.path / "results" / f"{name}\x1b[2J.json").write_text("{", encoding="utf-8")
    run.run.fail(result.cell.model_copy(update={"method": "tinybert"}), f"Traceback\n{ESCAPES}", ESCAPES)
    tables = {"compare": {"geep": [ESCAPES]}, "method": {"geep": {"like": ESCAPES, "x": ESCAPES}}}
    (run.path / "run.json").write_text(json.dumps({"profile": tables}), encoding="utf-8")
    return run


def test_no_control_character_reaches_terminal_or_report(fabricate, tmp_path, capsys):
    """Notes, fingerprints, reasons of failures and tables of a profile are shown with visible escapes."""
    run = hostile(fabricate)
    write_report(run.path)
    for path in (run.path / "report").rglob("*.*"):
        if path.suffix in (".md", ".html", ".csv", ".tex", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert is_safe(text), path.name
    assert r"\x1b[2J" in (run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert is_safe(summary(run.path))
    packed = pack(run.path)
    assert is_safe(render(compare(packed, packed)))
    write(packed, tmp_path / "packed.json")
    data = json.loads((tmp_path / "packed.json").read_text(encoding="utf-8"))
    data["commits"], data["problems"], data["name"] = [ESCAPES], [ESCAPES], ESCAPES
    (tmp_path / "packed.json").write_text(json.dumps(data), encoding="utf-8")
    found = load(tmp_path / "packed.json")
    assert is_safe(render(compare(found, found)))
    assert main(["report", f"{tmp_path}/no{ESCAPES.replace(chr(0), '')}"]) == 2
    assert is_safe(capsys.readouterr().err)


def test_a_caveat_is_one_line_on_the_terminal(fabricate):
    """A note with line breaks cannot add lines that look like ours."""
    run = fabricate()
    run.edit(run.cell("bert"), lambda data: data.update(notes=["a\n\ncells: 9 measured"]))
    assert "cells: 9 measured" not in summary(run.path).splitlines()
    assert all("\n" not in caveat for caveat in build_view(run.path).caveats)


@given(st.text(max_size=30))
def test_clean_text_is_printable_and_other_text_stays(text):
    """What is printable stays as it is; of the rest only line breaks and tabs do."""
    assert is_safe(clean(text)) or any(ord(char) > 0x7F for char in text)
    assert clean(clean(text)) == clean(text)
    if text.isprintable():
        assert clean(text) == text
    assert clean_all({text: [text, 1, None]}) == {clean(text): [clean(text), 1, None]}


@pytest.mark.parametrize("text", FORMULAS)
def test_texts_in_csv_are_no_formulas(text):
    """A text cell, and a heading, that begin like a formula get an apostrophe; negative numbers stay numbers."""
    table = Table("t", "c", [{"a": text, "b": -1.5}], [Column("a", "A", lambda row: "")], ("a", "b", text))
    table.values = {name: (lambda row, name=name: row.get(name, -2)) for name in ("a", "b", text)}
    written = to_csv(table)
    back = pd.read_csv(io.StringIO(written), dtype={"a": str})
    shown = rf"\x0d{text[1:]}" if text.startswith("\r") else f"'{text}"
    assert back.columns.tolist() == ["a", "b", shown]
    assert back["a"].tolist() == [shown] and back["b"].tolist() == [-1.5] and back[shown].tolist() == [-2]


@given(st.one_of(st.text(max_size=9), st.sampled_from(FORMULAS + APOSTROPHES), st.floats(), st.integers(), st.none()))
def test_csv_values_are_read_back(value):
    """Escaping is undone when the project reads its own files; numbers are never changed."""
    written = csv_value(value)
    if isinstance(value, str):
        assert not written.startswith(("=", "@", "\t", "\r"))
        assert not written.startswith(("+", "-")) or math.isfinite(float(written))
        assert from_csv(written) == clean(value)
    else:
        assert written is value and from_csv(written) is value


def test_a_point_that_is_a_formula_is_escaped_in_the_report(fabricate):
    """Operating points are labels of a plug-in: every CSV of a report holds them as text."""
    run = hostile(fabricate)
    write_report(run.path)
    texts = [path.read_text(encoding="utf-8") for path in (run.path / "report" / "tables").glob("*.csv")]
    assert any("'=1+2" in text for text in texts)
    assert not any(cell.startswith("=") for text in texts for line in text.splitlines() for cell in line.split(","))
