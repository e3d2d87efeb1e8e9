"""The grid of distillation: its cells, what they are compared with, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baselines.distilled.distil import DistilSettings
from suites.studies.distil_grid import grid_study
from suites.studies.distil_grid.grid_cells import ALONE, INITS, KNOWLEDGE, MATCHINGS, GridCell, cells
from suites.studies.distil_grid.heat_maps import heat_maps


def test_every_cell_is_a_valid_student_of_its_own() -> None:
    """Names and settings of all cells differ, and `distil` accepts them; knowledge without layers has one cell per start."""
    every = list(cells(tuple(KNOWLEDGE), MATCHINGS, INITS))
    assert len(every) == len(INITS) * (len(ALONE) + (len(KNOWLEDGE) - len(ALONE)) * len(MATCHINGS))
    assert len({cell.name for cell in every}) == len(every)
    read = [
        DistilSettings.read({**cell.settings, "student": "x" * (cell.init == "folder")}, cell.name) for cell in every
    ]
    assert len({one.model_dump_json() for one in read}) == len(every)
    for cell, own in zip(every, read, strict=True):
        assert own.by_layer == (cell.knowledge not in ALONE) and own.answers
        assert own.taught == (cell.knowledge != "labels")


def test_the_grid_is_measured_compared_and_drawn(
    mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each cell has a row per seed; effects compare cells that differ in one axis; the command resumes without a new fit."""
    out = tmp_path / "g.json"
    axes = ["--knowledge", "logits,hidden-mse", "--matching", "uniform,last", "--init", "first-k"]
    options = [*mini_options, *axes, "--seeds", "0,1", "--set", "training.epochs=1", "--out", str(out)]
    assert grid_study.main(options) == 0
    data = json.loads(out.read_text(encoding="utf-8"))
    assert len(data["rows"]) == 2 * (1 + 3) and not any(row["failed"] for row in data["rows"])
    for one in data["cells"]:
        values = [
            row["accuracy"] for row in data["rows"] if all(row.get(axis) == one[axis] for axis in grid_study.AXES)
        ]
        assert one["accuracy"] == pytest.approx(50 * sum(values)) and one["half"] is not None
        assert (one["gain"] is None) == (one["knowledge"] == "logits")
    effects = {(one["axis"], one["value"], one["less"]): one for one in data["effects"]}
    assert {key: one["pairs"] for key, one in effects.items()} == {
        ("knowledge", "hidden-mse", "logits"): 2,
        ("matching", "last", "uniform"): 1,
    }
    means = {cell["matching"]: cell["accuracy"] for cell in data["cells"]}
    gap = (means["last"] - means["uniform"]) / 100
    assert effects["matching", "last", "uniform"]["mean"] == pytest.approx(gap)
    gain = (means["last"] + means["uniform"]) / 200 - means["—"] / 100
    assert effects["knowledge", "hidden-mse", "logits"]["mean"] == pytest.approx(gain)
    assert all(one["holm"] >= one["p"] for one in effects.values())
    drawn = (tmp_path / "g-toy.svg").read_text(encoding="utf-8")
    assert all(word in drawn for word in ("first-k", "hidden-mse", "uniform", "±"))
    table = (tmp_path / "g.md").read_text(encoding="utf-8")
    assert "80 % power for" in table and "| hidden-mse | last | first-k |" in table
    capsys.readouterr()
    assert grid_study.main(options) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["cells"] == data["cells"]


def test_failed_cells_are_tried_again(
    mini_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the same command, after the study ended or was stopped, and no other cell is measured again."""
    failing, tried = {"grid-logits-first-k", "grid-logits-random"}, []

    def answered(session: Any, method: str) -> dict[str, Any]:
        tried.append(method)
        if "stop" in failing:
            raise KeyboardInterrupt
        right = None if method in failing else [1, 0]
        return {"right": right, "accuracy": right and 0.5, "steps": None, "flops": None, "failed": "no" * (not right)}

    monkeypatch.setattr(grid_study, "answered", answered)
    out = tmp_path / "g.json"
    axes = ["--knowledge", "labels,logits", "--init", "first-k,random", "--out", str(out)]

    def run() -> tuple[int, list[str]]:
        tried.clear()
        return grid_study.main([*mini_options, *axes]), [*tried]

    code, first = run()
    assert code == 1 and len(first) == 5
    assert run() == (1, ["grid-logits-first-k", "grid-logits-random"])
    assert "toy/seed0: 2 failed cell(s) are tried again" in capsys.readouterr().err
    failing.add("stop")
    assert run()[1] == ["grid-logits-first-k"]  # stopped before it ended
    failing -= {"stop", "grid-logits-first-k"}
    assert run() == (1, ["grid-logits-first-k", "grid-logits-random"])
    failing.clear()
    assert run() == (0, ["grid-logits-random"])
    assert run() == (0, [])
    data = json.loads(out.read_text(encoding="utf-8"))
    assert list(data["parts"]) == ["toy/seed0"] and len(data["rows"]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--knowledge", "logit"], "'logit' is not one of labels, logits, embeddings"),
        (["--matching", "middle"], "'middle' is not one of uniform, last, top, first, random"),
        (["--init", "svd"], "--init svd projects embeddings to a smaller width"),
        (["--init", "folder"], "--init folder needs a student"),
        (["--init", "first-k", "--set", "distil.width=0.5"], "choose from svd, random"),
        (["--base", "distilbert"], "--base distilbert is like 'distilbert', which has no axes"),
        (["--base", "distill"], "unknown method 'distill': did you mean distil"),
        (["--methods", "bert"], "the grid has no --methods"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is loaded or trained; the line says how to mend it."""
    try:
        code: object = grid_study.main(["--profile", "quick", *options, "--out", str(tmp_path / "x.json")])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "Traceback" not in said
    assert not (tmp_path / "x.json").exists()


def test_failed_cells_are_drawn_as_such() -> None:
    """A cell without an accuracy says so in its place, and does not stretch the colours."""
    one = {"knowledge": "logits", "matching": "—", "init": "random", "accuracy": 61.24, "half": None}
    other = {**one, "knowledge": "labels", "accuracy": None}
    drawn = heat_maps("toy", [one, other])
    assert "61.2" in drawn and "failed" in drawn and "nan" not in drawn
    assert GridCell("logits", "—", "random").name == "grid-logits-random"
