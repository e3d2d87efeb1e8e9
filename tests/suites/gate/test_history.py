"""The history over commits, as a table and as a figure."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from harness.results.packed_run import Machine, PackedCell, PackedRun, load, write
from harness.results.schema import Cell
from suites.gate import history


def cell(
    method: str, dataset: str = "a", *, backbone: str = "tiny", batch_size: int = 8, **change: object
) -> PackedCell:
    facts: dict = {
        "kind": "control" if method.startswith("control") else "method",
        "synthetic": True,
        "n": 10,
        "accuracy": 0.9,
        "flops_linear": 8.0 if method == "bert" else 2.0,
        "flops_full": 9.0,
        "mean_layers": 3.0,
        "mean_heads": 1.0,
        "exits": [10],
        "reference": "bert",
        "speedup": 2.0,
        "machine": 0,
        **change,
    }
    coordinates = Cell(
        method=method,
        dataset=dataset,
        source="embedded",
        backbone=backbone,
        seed=0,
        point="p",
        protocol="modern",
        order="length",
        executor="own",
        batch_size=batch_size,
        device="cpu",
        dtype="float32",
    )
    return PackedCell(cell=coordinates, **facts)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return the files of two commits on two machines; the second has one more dataset."""
    first = [cell("bert"), cell("geep"), cell("control-x"), cell("geep", "b"), cell("bert", "b")]
    second = [
        *(cell("bert"), cell("geep", accuracy=0.8, speedup=8.0), cell("control-x", speedup=None)),
        *(cell("geep", "b", accuracy=1.0), cell("bert", "b"), cell("geep", "c", accuracy=0.1), cell("bert", "c")),
    ]
    for name, cells in (("1", first), ("2", second)):
        machine = Machine(cpu=f"CPU {name}", cores=2, torch="2")
        write(
            PackedRun(name="quick", commits=[f"commit{name}"], machines=[machine], cells=cells),
            tmp_path / f"{name}.json",
        )
    return [str(tmp_path / "1.json"), str(tmp_path / "2.json")]


def test_the_table_has_means_over_common_cells(files: list[str], tmp_path: Path) -> None:
    """Accuracy is a mean and ratios are geometric means over common cells; a missing speed-up is empty."""
    assert history.main([*files, "--out", str(tmp_path / "h.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text(encoding="utf-8").splitlines()))
    geep = [row for row in rows if row["method"] == "geep"]
    assert [(row["commit"], row["cells"]) for row in geep] == [("commit1", "2"), ("commit2", "2")]
    assert float(geep[1]["accuracy"]) == pytest.approx(0.9)
    assert float(geep[1]["speedup"]) == pytest.approx(4.0)
    assert float(geep[1]["flops_ratio"]) == pytest.approx(4.0)
    assert [row["speedup"] for row in rows if row["method"] == "control-x"] == ["2.0", ""]


def test_the_figure_names_methods_commits_and_synthetic_data(files: list[str], tmp_path: Path) -> None:
    """The figure shows methods, not controls, and both commits, and is reproducible."""
    out = tmp_path / "h.svg"
    assert history.main([*files, "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    for word in ("geep", "bert", "commit1", "commit2", "synthetic"):
        assert word in text
    assert "control-x" not in text
    history.main([*files, "--out", str(out)])
    assert out.read_text(encoding="utf-8") == text


def test_other_backbones_and_batch_sizes_move_no_line(files: list[str], tmp_path: Path) -> None:
    """FLOPs ratios are over the reference of the same backbone, and cells that one file alone has do not count."""
    more = [
        cell("bert", batch_size=1, accuracy=0.1, speedup=9.0),
        cell("geep", batch_size=1, accuracy=0.1, speedup=9.0),
        cell("bert", backbone="a large one", flops_linear=800.0),
    ]
    with_more = tmp_path / "more.json"
    first = load(Path(files[0]))
    write(first.model_copy(update={"cells": [more[2], *first.cells, *more[:2]]}), with_more)
    assert history.main([files[0], str(with_more), "--out", str(tmp_path / "h.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text(encoding="utf-8").splitlines()))
    for method in ("bert", "geep"):
        before, after = ({**row, "file": "", "commit": "", "number": ""} for row in rows if row["method"] == method)
        assert before == after


def test_cells_on_other_rows_are_no_line(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell whose test rows changed between two files is left out with a line; without any other there is no history."""
    data = json.loads(Path(files[1]).read_text(encoding="utf-8"))
    changed = tmp_path / "changed.json"
    for number, said in (
        (1, "1 cells are left out"),
        (len(data["cells"]), "they differ in number of test rows (10 and 20)"),
    ):
        cells = [{**one, "n": 20} for one in data["cells"][:number]] + data["cells"][number:]
        changed.write_text(json.dumps({**data, "cells": cells}), encoding="utf-8")
        assert history.main([files[0], str(changed), "--out", str(tmp_path / "h.csv")]) == (0 if number == 1 else 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert "bert" in (tmp_path / "h.csv").read_text(encoding="utf-8")


def test_unusable_input_is_one_line(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown format, a missing file and files without a common cell give one line and exit code 2."""
    other = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    for one in other["cells"]:
        one["cell"]["dataset"] = "z"
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    for arguments, said in (
        ([*files, "--out", str(tmp_path / "h.pdf")], "neither .svg nor .csv"),
        (["nowhere.json", "--out", str(tmp_path / "h.csv")], "cannot read nowhere.json"),
        ([files[0], str(tmp_path / "other.json"), "--out", str(tmp_path / "h.csv")], "no cell in common"),
    ):
        assert history.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
