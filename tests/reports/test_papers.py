"""The papers' table form."""

from __future__ import annotations

import pytest

from reports.analysis.view import build_view
from reports.papers import main, paper_tables
from reports.tables.formats import to_latex, to_markdown


def test_form_of_the_paper(fabricate):
    """Rows are method and speed, columns accuracy and FLOPs with the FLOPs ratio; languages are tables of their own."""
    run = fabricate()
    run.cell("bert", dataset="weibo", language="zh", flops=21_785_247_744, accuracy=0.9769, synthetic=False)
    run.cell(
        "fastbert",
        "speed=0.5",
        dataset="weibo",
        language="zh",
        flops=10_892_623_872,
        accuracy=0.9,
        speedup=1.5,
        synthetic=False,
    )
    run.cell("bert", dataset="ag_news", language="en", synthetic=False)
    chinese, english = paper_tables(build_view(run.path))
    assert (chinese.name, english.name) == ("paper-zh", "paper-en")
    assert chinese.cells == [
        ["bert", "full", "97.69", "21.8G (1.00×)"],
        ["fastbert", "speed=0.5", "90.00", "10.9G (2.00×)"],
    ]
    assert "weibo FLOPs (FLOPs ratio)" in to_markdown(chinese)
    assert r"\multicolumn{2}{c}{weibo}" in to_latex(chinese)
    assert any("it is not wall time" in note for note in chinese.notes)


def test_only_methods_are_shown(fabricate):
    """Controls and bounds have no row in the papers' table."""
    run = fabricate()
    run.cell("bert")
    run.cell("control-random", "speed=0.5", kind="control")
    run.cell("oracle", "speed=0.5", kind="bound")
    (table,) = paper_tables(build_view(run.path))
    assert [row[0] for row in table.cells] == ["bert"]


def test_missing_cell_is_a_dash_with_a_reason(fabricate):
    """A method that was not measured on a dataset has a dash there."""
    run = fabricate()
    run.cell("bert", dataset="a")
    run.cell("bert", dataset="b")
    run.cell("fastbert", "speed=0.5", dataset="a")
    (table,) = paper_tables(build_view(run.path))
    assert table.cells[1][-2:] == ["—", "—"]
    assert any("was not measured on this dataset" in note for note in table.notes)


def test_devices_stay_apart(fabricate):
    """The same method on two devices makes two rows that name the device."""
    run = fabricate()
    run.cell("bert", device="cpu")
    run.cell("bert", device="cuda")
    (table,) = paper_tables(build_view(run.path))
    assert [row[2] for row in table.cells] == ["cpu", "cuda"]


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
    """No run there, or no results in it: exit code 2 and one line that says how to mend it."""
    (tmp_path / "results").mkdir()
    assert main([str(make(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "geep-bench run" in error
