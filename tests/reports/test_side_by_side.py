"""Several runs in one table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.errors import ResultError
from reports.build import write_report
from reports.notation.table_formats import to_markdown
from reports.side_by_side import main, side_by_side

pytestmark = pytest.mark.usefixtures("without_figures")


def answers(n: int, wrong: int) -> list[bool]:
    return [i >= wrong for i in range(n)]


@pytest.fixture(scope="module")
def runs(fabricator: type[Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two datasets: fastbert is measured on both, geep on one, the oracle on the other. Do not change them."""
    made = []
    for name, wrong in (("first", 8), ("second", 0)):
        run = fabricator(tmp_path_factory.mktemp("runs") / name)
        run.cell("bert", dataset=name, correct=answers(200, 0))
        agree = 0.5 if wrong else 1.0
        run.cell(
            *("fastbert", "speed=0.5"),
            dataset=name,
            correct=answers(200, wrong),
            layers=3.0,
            speedup=2.0,
            rounds_agree=agree,
            train_flops=15e9 if wrong else 22.5e9,
        )
        if name == "first":
            run.cell(
                "geep", "speed=0.5", dataset=name, correct=answers(200, 1), layers=1.5, speedup=4.0, train_flops=None
            )
        else:
            run.cell("oracle", "agree", dataset=name, kind="bound", correct=answers(200, 0))
        write_report(run.path)
        shutil.rmtree(run.path / "samples")  # as in published runs
        made.append(run.path)
    return made


def test_a_row_per_method_and_point(runs: list[Path]) -> None:
    """A method that was not measured on a dataset has dashes there; tests come from the reports of the runs."""
    (table,) = side_by_side(runs)
    cells = {(row[0], row[1]): row[3:] for row in table.cells}
    assert list(cells) == [
        ("bert", "full"),
        ("fastbert", "speed=0.5"),
        ("geep", "speed=0.5"),
        ("oracle (bound, not a method)", "agree"),
    ]
    # Eight losses and no win: two-sided p = 2 / 2^8, the only point of its family.
    assert cells["fastbert", "speed=0.5"][1:4] == ["3.00", "2.00×", "−4.0 (0.008)"]
    assert cells["fastbert", "speed=0.5"][4:] == [cells["bert", "full"][4], "3.00", "2.00×", "0.0 (too few differ)"]
    assert (
        cells["geep", "speed=0.5"][4:] == ["—"] * 4 and cells["oracle (bound, not a method)", "agree"][:4] == ["—"] * 4
    )
    assert cells["bert", "full"][3] == "—"
    # Training relative to bert's: smallest and largest ratio of the datasets; untrained methods have none.
    assert [row[2] for row in table.cells] == ["1.00×", "2.00–3.00×", "—", "—"]
    # A mark is shown at the dataset that it refers to.
    first, second = cells["fastbert", "speed=0.5"][0], cells["fastbert", "speed=0.5"][4]
    assert first.startswith("96.0 (") and first.endswith(") †") and "†" not in second
    assert any(note.startswith("†") for note in table.notes)
    text = to_markdown(table)
    assert "not measured on this dataset at this point" in text and "first: 200 test rows" in text


def test_real_and_synthetic_data_are_separate(
    runs: list[Path], fabricate: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Synthetic data is named in caption and file names; without a test there is no p."""
    real = fabricate("real")
    real.cell("bert", dataset="third", synthetic=False)
    write_report(real.path)
    assert main([*map(str, [*runs, real.path]), "--out", str(tmp_path / "out")]) == 0
    captions = [line for line in capsys.readouterr().out.splitlines() if line.startswith("**")]
    assert captions == ["**Every method on every dataset**", "**Every method on every dataset (synthetic data)**"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"side-by-side{end}.{suffix}" for suffix in ("csv", "md", "tex") for end in ("", "-synthetic")
    }
    frame = pd.read_csv(tmp_path / "out" / "side-by-side-synthetic.csv").set_index("method")
    assert frame.loc["fastbert", ["first p", "second p"]].tolist() == [2 / 2**8, 1.0]
    assert pd.read_csv(tmp_path / "out" / "side-by-side.csv")["third p"].isna().all()


def test_methods_of_another_run_join_their_dataset(runs: list[Path], fabricate: Callable[..., Any]) -> None:
    """Methods measured later with the same reference are added, with a note."""
    later = fabricate("later")
    later.cell("bert", dataset="first", correct=answers(200, 0), speedup=0.9)
    later.cell("fastbert", "speed=0.5", dataset="first", correct=answers(200, 100), speedup=9.0)
    later.cell("tinybert", dataset="first", correct=answers(200, 8), layers=2.0, speedup=8.0, train_flops=3.75e9)
    write_report(later.path)
    alone, joined = side_by_side(runs), side_by_side([*runs, later.path])
    assert joined[0].cells[: len(alone[0].cells) - 1] == alone[0].cells[:-1]  # the bound is the last row
    (new,) = [row for row in joined[0].cells if row not in alone[0].cells]
    assert new[:3] == ["tinybert", "full", "0.50×"] and new[4:7] == ["2.00", "8.00×", "−4.0 (0.008)"]
    assert "first: measured in another run, beside the same bert timed again: tinybert." in joined[0].notes


def test_runs_that_do_not_belong_together_are_refused(
    runs: list[Path], fabricate: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that do not belong together, or are damaged, give exit code 2 and one line."""
    other = shutil.copytree(runs[1], tmp_path / "other")
    (other / "report" / "tables" / "summary-synthetic.csv").write_text("method,point\nbert,full\n")
    twice = shutil.copytree(runs[1], tmp_path / "twice")
    summary = twice / "report" / "tables" / "summary-synthetic.csv"
    lines = summary.read_text(encoding="utf-8").splitlines()
    summary.write_text("\n".join([*lines, lines[1]]) + "\n", encoding="utf-8")
    fewer = fabricate("fewer")
    fewer.cell("bert", dataset="first", correct=answers(100, 0))
    fewer.cell("pabee", dataset="first", correct=answers(100, 0))
    write_report(fewer.path)
    damaged = shutil.copytree(runs[1], tmp_path / "damaged")
    broken = next((damaged / "results").iterdir())
    broken.write_text("{", encoding="utf-8")
    unlike = shutil.copytree(fewer.path, tmp_path / "unlike")
    less = fabricate("less")
    for method in ("bert", "pabee"):
        less.cell(method, dataset="first", correct=answers(200, 1), train_flops=1e9)
    write_report(less.path)
    alone = []
    for method in ("pabee", "berxit"):
        alone.append(fabricate(method))
        alone[-1].cell(method, dataset="first", reference=None, speedup=None, correct=answers(200, 0))
        write_report(alone[-1].path)
    shutil.rmtree(unlike / "results")
    changed = []
    for name, binding in (("rows", {"test_rows": "corrected"}), ("epochs", {"training": {"epochs": "9"}})):
        changed.append(fabricate(name))
        for method in ("bert", "pabee"):
            changed[-1].cell(method, dataset="first", correct=answers(200, 0), binding=binding)
        write_report(changed[-1].path)
    older = fabricate("older")
    for method in ("bert", "pabee"):
        older.edit(older.cell(method, dataset="first", correct=answers(200, 0)), lambda data: data.pop("binding"))
    write_report(older.path)
    mixed = fabricate("mixed")
    mixed.cell("bert", dataset="first")
    mixed.cell("pabee", dataset="first", binding={"max_length": 16})
    write_report(mixed.path)
    for given, said in (
        ([unlike], "no results in"),
        (
            [runs[0], less.path],
            "accuracy of the reference 1.0 and 0.995; training of the reference 7500000000.0 and 1000000000.0",
        ),
        ([alone[0].path, alone[1].path], "no reference in common"),
        ([runs[0], runs[0]], "which has no other methods"),
        ([runs[0], fewer.path], "which differ (test rows 200 and 100)"),
        ([runs[0], changed[0].path], "which differ (test rows): give runs of one setting"),
        ([runs[0], changed[1].path], "which differ (training.epochs (3 and 9))"),
        ([runs[0], older.path], "one of them was measured before results had fingerprints"),
        ([mixed.path], "cells that do not belong together are in rows of their own"),
        ([damaged], "cannot read"),
        ([runs[0], tmp_path / "none"], "geep-bench report"),
        ([other], "another version"),
        ([twice], "bert full on second in several settings"),
    ):
        assert main([str(path) for path in given]) == 2
        error = capsys.readouterr().err
        assert error.startswith("side_by_side: ") and said in error and error.count("\n") == 1
    assert broken.read_text(encoding="utf-8") == "{"  # read, not moved


@pytest.mark.parametrize(("way", "value"), [("compute", "packed"), ("batch_size", 1), ("engine", "onnx")])
def test_speedups_over_a_reference_that_ran_otherwise_do_not_join(
    runs: list[Path], fabricate: Callable[..., Any], way: str, value: object
) -> None:
    """The speed-up of a method over a faster bert is not comparable with speed-ups over a slower one."""
    later = fabricate("later")
    for method in ("bert", "tinybert"):
        later.cell(method, dataset="first", correct=answers(200, 0), **{way: value})
    write_report(later.path)
    with pytest.raises(ResultError, match=f"{way} of the reference .* and {value}"):
        side_by_side([*runs, later.path])
