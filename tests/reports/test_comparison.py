"""The text of a comparison, and the commands that make one, end to end."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from harness.cli.main import main
from harness.regression.compare import compare
from harness.results.packed_run import load
from reports.analysis.view import build_view
from reports.build import write_report
from reports.comparison import render

GOLDEN = Path(__file__).parents[1] / "golden" / "first-schema"
HERE = {"cpu": "a CPU", "cores": 2, "torch_threads": 2, "versions": {"torch": "2.13"}}
RIGHT = np.arange(400) >= 40


@pytest.fixture
def two(fabricate):
    """Two runs of two methods; ``geep`` can be changed in the second."""

    def make(**change):
        paths = []
        for name, more in (("base", {}), ("new", change)):
            run = fabricate(name)
            run.cell("bert", correct=RIGHT, fingerprint=HERE, dataset="weibo", language="zh")
            options = {"correct": RIGHT, "layers": 4, "fingerprint": HERE, "dataset": "weibo", "language": "zh", **more}
            run.cell("geep", "speed=0.5", **options)
            paths.append(str(run.path))
        return paths

    return make


@pytest.fixture(autouse=True)
def hooked(monkeypatch):
    """Return the reporter that the entry point names, also if the project was not installed again since then."""
    monkeypatch.setattr("harness.api.reporter", lambda name: {"comparison": render}[name])


def test_the_command_finds_the_reporter():
    """The entry point that the project declares is the function tested here."""
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert (
        declared["project"]["entry-points"]["geep.reporters"]["comparison"] == f"{render.__module__}:{render.__name__}"
    )


def test_nothing_changed(two, capsys):
    """Two equal runs have identical counts and pass the gate."""
    assert main(["compare", *two(), "--gate"]) == 0
    out = capsys.readouterr().out
    assert "2 cells compared; in 2 of them all predictions and all counts are identical" in out
    assert "weibo (synthetic)" in out
    assert out.splitlines()[-1] == "gate: nothing got worse"


def test_regressions_are_named_and_gated(two, capsys):
    """Lost samples and more layers are marked in the table and explained; the exit code is 1 with the gate and 0 without."""
    worse = RIGHT.copy()
    worse[40:60] = False
    paths = two(correct=worse, layers=5)
    assert main(["compare", *paths]) == 0
    out = capsys.readouterr().out
    assert "! geep speed=0.5" in out
    assert "accuracy down by 5.00 points (20 samples lost, 0 won" in out
    assert "layers up by 25 %" in out
    assert out.splitlines()[-1] == "gate: 2 regressions"
    assert main(["compare", *paths, "--gate"]) == 1
    assert main(["compare", *two(correct=worse), "--gate", "--margin", "6"]) == 0


def test_lines_fit_a_wide_terminal(two):
    """Tables fit 132 columns."""
    base, new = two(layers=5)
    text = render(compare(load(base), load(new)))
    table = [line for line in text.splitlines() if not line.startswith(("-", "regression", "only"))]
    assert all(len(line) <= 132 for line in table)


def test_cells_of_one_run_only_are_named(two, fabricate, capsys):
    """A method that only base has is a gap, and the gate does not pass; a method that only the new run has is none."""
    base, new = two()
    extra = fabricate("base")
    extra.cell("tinybert", correct=RIGHT, fingerprint=HERE, dataset="weibo", language="zh")
    assert main(["compare", base, new, "--gate"]) == 1
    out = capsys.readouterr().out
    assert "only in base (1): weibo tinybert full" in out
    assert "gap: weibo tinybert: missing in new: full seed 0" in out and out.endswith("gate: 1 gap\n")
    assert main(["compare", base, new]) == 0
    assert main(["compare", new, base, "--gate"]) == 0
    assert "only in new (1): weibo tinybert full" in capsys.readouterr().out


def test_packing_changes_nothing(two, tmp_path, capsys):
    """A packed run gives the same comparison as its run."""
    base, new = two(layers=5)
    file = tmp_path / "base.json"
    assert main(["pack", base, str(file)]) == 0
    assert "packed 2 cells into" in capsys.readouterr().out
    texts = []
    for first in (base, str(file)):
        assert main(["compare", first, new, "--gate"]) == 1
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "nowhere", "BASE"], "cannot read nowhere"),
        (["compare", "BASE"], "NEW"),
        (["compare", "BASE", "empty"], "no run at empty"),
        (["compare", "BASE", "broken.json"], "not a packed run"),
        (["compare", "BASE", "other.json"], "schema 99"),
        (["compare", "BASE", "else.json"], "no cell in common"),
        (["compare", "BASE", "BASE", "--margin", "-1"], "not a number from 0 to 100"),
        (["compare", "BASE", "BASE", "--slower", "much"], "not a number from 0 to 100"),
        (["pack", "nowhere", "x.json"], "no run at nowhere"),
        (["pack", "BASE", "broken.json/x.json"], "cannot write"),
    ],
)
def test_unusable_input_is_one_line(two, tmp_path, monkeypatch, capsys, arguments, message):
    """Missing, broken or incompatible input gives exit code 2 and one line, with and without the gate."""
    base, _ = two()
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.json").write_text("{")
    main(["pack", base, "packed.json"])
    capsys.readouterr()
    data = json.loads(Path("packed.json").read_text())
    Path("other.json").write_text(json.dumps({**data, "schema": 99}))
    for cell in data["cells"]:
        cell["cell"]["dataset"] = "else"
    Path("else.json").write_text(json.dumps(data))
    assert main([base if part == "BASE" else part for part in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert message in line
    assert captured.out == ""


def test_results_of_the_first_schema_make_a_report(tmp_path):
    """Results that lack all newer fields have tables, figures and a page; a failure measured afterwards is no caveat."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    assert write_report(tmp_path / "old").is_file()
    view = build_view(tmp_path / "old")
    assert len(view.rows) == 3
    assert not any("Failed and missing" in caveat for caveat in view.caveats)


def test_results_of_the_first_schema_make_a_comparison(tmp_path, capsys):
    """Old results compared with themselves are identical; what cannot be tested is named."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "old"), "--gate"]) == 0
    out = capsys.readouterr().out
    assert "untested" in out
    assert "the single passes were not stored" in out
