"""The command that writes the papers' table form."""

from __future__ import annotations

import pytest

from reports.papers import main


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
