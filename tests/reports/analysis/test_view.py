"""Numbers of the view on known input."""

from __future__ import annotations

import math

import pytest

from harness.core.errors import ResultError
from reports.analysis.view import build_view
from reports.tables.result_tables import results_table


def row(view, method, point="full"):
    (found,) = [row for row in view.rows if (row.method, row.point) == (method, point)]
    return found


def test_ratios_refer_to_the_reference_of_the_same_run(fabricate):
    """FLOPs and layer ratios are reference over row, and are separate from the measured speed-up."""
    run = fabricate()
    run.cell("bert", flops=8.0, layers=6)
    run.cell("fastbert", "speed=0.5", flops=2.0, layers=3, speedup=1.7)
    fast = row(build_view(run.path), "fastbert", "speed=0.5")
    assert (fast.ratio_linear, fast.ratio_layers, fast.speedup) == (4.0, 2.0, 1.7)
    assert fast.ratio_full == pytest.approx(4.0)
    assert fast.kept == pytest.approx(1.7 / 4.0)


def test_seeds_are_averaged_and_counted(fabricate):
    """Several seeds become one row with mean, sample standard deviation and their number."""
    run = fabricate()
    for seed, accuracy in enumerate((0.80, 0.84, 0.88)):
        run.cell("bert", seed=seed, accuracy=accuracy)
    bert = row(build_view(run.path), "bert")
    assert bert.accuracy == pytest.approx(0.84)
    assert bert.accuracy_sd == pytest.approx(0.04)
    assert (bert.seeds, bert.seed_list) == (3, "0 1 2")


def test_the_interval_over_seeds_uses_students_distribution(fabricate):
    """Three seeds at 80, 84 and 88 %: 84 +- 4.303 x 4 / sqrt(3) points, in the table with the deviation."""
    run = fabricate()
    for seed, accuracy in enumerate((0.80, 0.84, 0.88)):
        run.cell("bert", seed=seed, accuracy=accuracy)
    view = build_view(run.path)
    bert = row(view, "bert")
    assert bert.accuracy_seeds_low == pytest.approx(0.84 - 4.302653 * 0.04 / math.sqrt(3), abs=1e-6)
    assert bert.accuracy_seeds_high == pytest.approx(0.84 + 4.302653 * 0.04 / math.sqrt(3), abs=1e-6)
    column = next(c for c in results_table(view, view.groups[0]).columns if c.key == "accuracy_sd")
    assert column.show(bert) == "4.00 (3; 74.1–93.9)"


def test_one_seed_has_no_spread(fabricate):
    """The spread of a single seed is missing, not zero."""
    run = fabricate()
    run.cell("bert")
    assert row(build_view(run.path), "bert").accuracy_sd is None


@pytest.mark.parametrize(
    "coordinate", [("device", "cuda"), ("dtype", "bfloat16"), ("protocol", "paper"), ("batch_size", 128)]
)
def test_settings_are_never_averaged(fabricate, coordinate):
    """Cells of another device, dtype, protocol or batch size are separate rows, and the setting is shown."""
    run = fabricate()
    run.cell("bert", accuracy=0.9)
    run.cell("bert", accuracy=0.8, **dict([coordinate]))
    view = build_view(run.path)
    assert sorted(row.accuracy for row in view.rows) == [0.8, 0.9]
    assert coordinate[0] in view.varying


def test_ratio_does_not_cross_devices(fabricate):
    """A row without a reference on its own device has no ratio."""
    run = fabricate()
    run.cell("bert", device="cpu")
    run.cell("fastbert", "speed=0.5", device="cuda", speedup=None, reference=None)
    assert row(build_view(run.path), "fastbert", "speed=0.5").ratio_linear is None


def test_synthetic_and_real_rows_of_one_name_are_separate(fabricate):
    """Synthetic and real data of one name never share a group."""
    run = fabricate()
    run.cell("bert", synthetic=True)
    run.cell("bert", synthetic=False)
    view = build_view(run.path)
    assert sorted(group.slug for group in view.groups) == ["ag_news", "ag_news-synthetic"]


def test_dataset_names_that_collide_get_separate_files(fabricate):
    """Two names with the same safe form do not overwrite each other's files."""
    run = fabricate()
    run.cell("bert", dataset="a b", synthetic=False)
    run.cell("bert", dataset="a:b", synthetic=False)
    assert len({group.slug for group in build_view(run.path).groups}) == 2


def test_difficulty_means(fabricate):
    """Accuracy and mean exit layer are taken per true difficulty."""
    run = fabricate()
    run.cell("bert", correct=[True, True, True, False, False, False], histogram=[2, 2, 0, 0, 0, 2])
    (row,) = build_view(run.path).difficulty
    assert [(level, part.accuracy, part.exit_layer) for level, part in row.levels.items()] == [
        (0, 1.0, 1.0),
        (1, 0.5, 2.0),
        (2, 0.0, 6.0),
    ]


def test_unknown_difficulty_is_left_out(fabricate):
    """Real data, whose difficulty is unknown, has no difficulty rows."""
    run = fabricate()
    run.cell("bert", synthetic=False)
    assert not build_view(run.path).difficulty


def test_reference_is_first_and_bounds_are_last(fabricate):
    """Rows are ordered: reference, methods, controls, bounds."""
    run = fabricate()
    run.cell("oracle", "speed=0.5", kind="bound")
    run.cell("control-random", "speed=0.5", kind="control")
    run.cell("alpha")
    run.cell("bert")
    assert [row.method for row in build_view(run.path).rows] == ["bert", "alpha", "control-random", "oracle"]


def test_a_broken_result_becomes_a_permanent_caveat(fabricate):
    """A broken file is set aside and named in this report and the next; the rest is reported."""
    run = fabricate()
    run.cell("bert")
    (run.path / "results" / "broken.json").write_text("{", encoding="utf-8")
    for _ in range(2):
        assert any("broken.json" in caveat for caveat in build_view(run.path).caveats)


def test_failures_are_caveats_until_measured(fabricate):
    """A failed cell is listed with the last line of its traceback, unless it was measured afterwards."""
    run = fabricate()
    result = run.cell("bert")
    run.run.fail(result.cell.model_copy(update={"method": "tinybert"}), "Traceback\nValueError: no such layer")
    run.run.fail(result.cell, "Traceback\nKeyError: mended")
    caveats = " ".join(build_view(run.path).caveats)
    assert "tinybert" in caveats and "ValueError: no such layer" in caveats
    assert "mended" not in caveats


def test_missing_samples_are_a_caveat(fabricate):
    """Results whose per-sample file is gone are still reported, with a caveat."""
    run = fabricate()
    run.cell("bert", samples=False)
    assert any("No per-sample rows" in caveat for caveat in build_view(run.path).caveats)


def test_differing_versions_are_a_caveat(fabricate):
    """Cells measured with different versions give a caveat; clocks and free memory do not."""
    run = fabricate()
    run.cell("bert", fingerprint={"torch": "2.12", "time": "1"})
    run.cell("fastbert", fingerprint={"torch": "2.13", "time": "2"})
    view = build_view(run.path)
    assert any("differ: torch." in caveat for caveat in view.caveats)
    assert dict(view.fingerprint)["torch"] == "2.12 | 2.13"


def test_an_empty_run_gives_advice(fabricate):
    """A run without results is an error that names the command to make one."""
    with pytest.raises(ResultError, match="geep-bench run"):
        build_view(fabricate().path)


def test_foreign_schema_is_refused_unchanged(fabricate):
    """A result of another schema version stops the report and stays where it is."""
    run = fabricate()
    path = run.run.result_path(run.cell("bert").cell)
    text = path.read_text(encoding="utf-8").replace('"schema": 1', '"schema": 99')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultError, match="schema 99"):
        build_view(run.path)
    assert path.read_text(encoding="utf-8") == text
