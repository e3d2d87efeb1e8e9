"""Packed runs: complete, small, and refused if damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import ResultError
from harness.results.packed_run import PackedCell, PackedRun, load, machine_of, pack, same_fit, write
from harness.results.rows.sample_columns import BEFORE_BIT, DEPTH_COLUMNS, SAMPLE_COLUMNS
from harness.results.run_folder import RunFolder, failed_cell
from harness.results.schema import Checks, Cost, Quality, Result, Speed
from tests.harness.results.conftest import make_cell

FINGERPRINT = {
    "cpu": "a CPU",
    "cores": 2,
    "torch_threads": 1,
    "commit": "c0ffee",
    "versions": {"torch": "2.13"},
    "gpu": {"name": "a GPU"},
}


def save(run: RunFolder, right: np.ndarray, **change: Any) -> Result:
    """Store one cell with these answers."""
    n = len(right)
    share = float(right.mean())
    result = Result(
        cell=make_cell(**change),
        kind="method",
        synthetic=False,
        language="en",
        params={},
        quality=Quality(accuracy=share, accuracy_low=share, accuracy_high=share, macro_f1=share, n=n),
        cost=Cost(
            flops_linear=1 / 3,
            flops_full=0.5,
            params=3,
            mean_layers=4.0,
            mean_heads=1.0,
            depth=4,
            valid_token_ratio=1.0,
        ),
        speed=Speed(
            samples_per_s=1.0,
            seconds=2.0,
            seconds_p10=2.0,
            seconds_p90=2.0,
            rounds=2,
            reference="bert",
            speedup=1.0,
            round_seconds=[0.1, 0.2],
            reference_seconds=[0.3, 0.1],
        ),
        training=None,
        checks=Checks(rounds_agree=1.0),
        exit_histogram=[0, 0, 0, n],
        fingerprint=FINGERPRINT,
    )
    rows = pd.DataFrame({name: np.arange(n) for name in SAMPLE_COLUMNS}).assign(correct=right, length=3)
    run.save(result, rows)
    return result


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "a-run")


def test_a_run_survives_packing(run: RunFolder, tmp_path: Path) -> None:
    """Answers, counts, passes and machine are equal when read from the file and from the folder."""
    right = np.random.default_rng(0).random(1001) < 0.7
    result = save(run, right)
    write(pack(run.path), tmp_path / "packed.json")
    found = load(tmp_path / "packed.json")
    assert found == load(run.path)
    (cell,) = found.cells
    np.testing.assert_array_equal(cell.correct, right)
    assert (cell.cell, cell.n, cell.accuracy) == (result.cell, 1001, result.quality.accuracy)
    assert (cell.flops_linear, cell.mean_layers, cell.tokens) == (1 / 3, 4.0, 3003)
    assert (cell.round_seconds, cell.reference_seconds) == ([0.1, 0.2], [0.3, 0.1])
    assert (found.commits, found.machine(cell)) == (["c0ffee"], machine_of(FINGERPRINT))
    assert (tmp_path / "packed.json").stat().st_size < 2400


def test_confidences_distinguish_fits(run: RunFolder) -> None:
    """Only samples that exit at the same layer count; one other confidence among them shows another fit."""
    result = save(run, np.ones(200, dtype=bool))
    rows = run.samples(result.cell)

    def cell(confidence: np.ndarray, exits: np.ndarray) -> PackedCell:
        run.save(result, rows.assign(confidence=confidence, exit_layer=exits))
        return pack(run.path).cells[0]

    sure, third = np.linspace(0.5, 1, 200), np.full(200, 3)
    before = cell(sure, third)
    assert before.sketched is not None and len(before.sketched[0]) == 64
    assert same_fit(before, cell(sure + 1e-6, third)) is True
    assert same_fit(before, cell(sure * 0.99, third)) is False
    later = np.where(np.arange(200) < 150, 4, 3)
    assert same_fit(before, cell(np.where(later == 4, 0.9, sure), later)) is True
    assert same_fit(before, cell(sure, np.full(200, 4))) is None
    assert same_fit(before, before.model_copy(update={"rows": "other"})) is None


@given(st.data())
@settings(max_examples=25)
def test_answers_of_all_layers_survive_packing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The masks of any number of samples and layers are the same in the file; other cells have none."""
    n, depth = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 62))
    before = data.draw(st.sampled_from([0, 1 << BEFORE_BIT]))
    masks = st.lists(
        st.builds(int.__or__, st.integers(0, 2**depth - 1), st.sampled_from([0, before])), min_size=n, max_size=n
    )
    columns = {name: np.array(data.draw(masks), dtype=np.int64) for name in DEPTH_COLUMNS}
    folder = tmp_path_factory.mktemp("packed")
    run = RunFolder.create(folder / "run")
    result = save(run, np.ones(n, dtype=bool))
    deep = result.model_copy(update={"exit_histogram": [0] * (depth - 1) + [n]})
    run.save(deep, run.samples(result.cell).assign(**columns))
    save(run, np.ones(n, dtype=bool), seed=1)
    write(pack(run.path), folder / "packed.json")
    with_masks, without = load(folder / "packed.json").cells
    assert with_masks.depth_columns is not None
    for name, mask in columns.items():
        np.testing.assert_array_equal(with_masks.depth_columns[name], mask)
    assert without.depth_columns is None


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_are_the_answers(make_cell: Callable[..., PackedCell], answers: list[bool]) -> None:
    """Any number of samples can be packed, also one that eight does not divide."""
    correct = make_cell(answers).correct
    assert correct is not None
    assert correct.tolist() == answers


def test_hashes_distinguish_rows_by_label_and_order(run: RunFolder) -> None:
    """Two cells on the same rows have the same hash; another label changes it."""
    save(run, np.ones(4, dtype=bool))
    save(run, np.zeros(4, dtype=bool), method="geep")
    other = save(run, np.ones(4, dtype=bool), method="tinybert")
    rows = run.samples(other.cell).assign(label=[0, 1, 2, 4])
    run.save(other, rows)
    hashes = {cell.cell.method: cell.rows for cell in pack(run.path).cells}
    assert hashes["bert"] == hashes["geep"] != hashes["tinybert"]


def test_a_cell_without_rows_is_packed(run: RunFolder) -> None:
    """A cell without per-sample rows is packed without bits and counted as a problem."""
    result = save(run, np.ones(4, dtype=bool))
    run.samples_path(result.cell).unlink()
    packed = pack(run.path)
    assert packed.cells[0].correct is None
    assert packed.problems == ["1 of 1 cells of a-run have no usable per-sample rows"]


def test_failures_are_packed_until_the_cell_is_measured(run: RunFolder) -> None:
    """A failed cell is listed unless it was measured afterwards; a record without a cell is ignored."""
    done = save(run, np.ones(4, dtype=bool))
    missing = done.cell.model_copy(update={"method": "geep"})
    run.fail(done.cell, "trace")
    run.fail(missing, "trace")
    assert pack(run.path).failed == [missing]
    assert failed_cell({"traceback": "trace"}) is failed_cell([]) is failed_cell({"cell": {"method": "x"}}) is None


def test_a_machine_without_facts_is_unknown() -> None:
    """Values that a fingerprint lacks are None, and a machine without them counts as unknown."""
    assert machine_of(FINGERPRINT).known
    assert machine_of(FINGERPRINT).gpu == "a GPU"
    assert not machine_of({}).known
    assert not machine_of({"cpu": "x", "cores": 2, "versions": "?"}).known


def edited(**change: Any) -> Callable[[dict[str, Any]], str]:
    return lambda data: json.dumps({**data, **change})


def in_cell(**change: Any) -> Callable[[dict[str, Any]], str]:
    return lambda data: json.dumps({**data, "cells": [{**data["cells"][0], **change}]})


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "not JSON": (lambda _: "{", "not a packed run"),
    "a list": (lambda _: "[]", "not a packed run"),
    "a result": (lambda _: '{"schema": 1}', "not a packed run"),
    "another version": (edited(packed=9), "version 9"),
    "another schema": (edited(schema=0), "result schema 0"),
    "no cells": (edited(cells=[]), "it has no cells"),
    "unknown field": (edited(colour="red"), "colour"),
    "bits cut": (in_cell(bits="AAAA"), "do not fit 400 samples"),
    "bits garbled": (in_cell(bits="?"), "damaged"),
    "sketch cut": (in_cell(sketch="AAAA", sketch_exits="AAAA"), "do not fit 400 samples"),
    "layers cut": (in_cell(depths="AAAA"), "do not fit 400 samples"),
    "machine missing": (in_cell(machine=3), "damaged"),
    "count missing": (in_cell(n=None), "cells.0.n"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line(
    case: str, tmp_path: Path, make_cell: Callable[..., PackedCell], make_packed: Callable[..., PackedRun]
) -> None:
    """A file that is not a packed run, or a damaged one, is refused with the problem and its correction."""
    path = tmp_path / "packed.json"
    write(make_packed(make_cell()), path)
    change, message = DAMAGE[case]
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ResultError, match="geep-bench pack") as caught:
        load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_runs_are_errors(tmp_path: Path, run: RunFolder) -> None:
    """A path that does not exist, a folder without a run, and a run without results have an error each."""
    with pytest.raises(ResultError, match="cannot read"):
        load(tmp_path / "nowhere")
    with pytest.raises(ResultError, match="no run at"):
        load(tmp_path)
    with pytest.raises(ResultError, match="no results in"):
        load(run.path)
