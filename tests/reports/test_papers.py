"""The command that writes the papers' table form."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.papers import main

PUBLISHED = Path(__file__).resolve().parents[2] / "reports" / "published"
# Published runs with tables in the papers' form.
RUNS = sorted({path.parents[2] for path in PUBLISHED.glob("*/report/tables/paper-*.md")})


def test_command_writes_and_prints(fabricate, capsys):
    """The command writes three formats and prints the Markdown."""
    run = fabricate()
    run.cell("bert")
    assert main([str(run.path)]) == 0
    names = {path.name for path in (run.path / "report" / "tables").iterdir()}
    assert names == {f"paper-en-synthetic.{suffix}" for suffix in ("md", "csv", "tex")}
    assert "| bert | full |" in capsys.readouterr().out


@pytest.mark.parametrize("make", [lambda path: path / "nothing", lambda path: path])
def test_bad_input_is_one_line_and_code_two(tmp_path, make, capsys):
    """A folder without run or results gives exit code 2 and one line with the correction."""
    (tmp_path / "results").mkdir()
    assert main([str(make(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "geep-bench run" in error


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_tables_follow_from_the_stored_cells(run, tmp_path, capsys):
    """What the command makes of a published run, without rows, data or weights, are the published tables, byte for byte."""
    assert main([str(run), "--out", str(tmp_path)]) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    published = {name: (run / "report" / "tables" / name).read_bytes() for name in made}
    assert made == published


def test_there_is_a_published_run():
    """The test above runs on something."""
    assert RUNS
