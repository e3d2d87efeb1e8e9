"""The Python API, with fake methods on a small data set."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import harness
from harness import registry
from harness.core.errors import ConfigError, ResultError, SettingsError, UnknownNameError
from harness.results.packed_run import pack, write
from harness.running.profile import Profile
from harness.running.run_settings import Settings


@pytest.fixture
def profile(stage: Any, grid_settings: Settings) -> Profile:
    """Two data sets and the fakes ``one``, ``two`` and ``three``; the reference is ``one``."""
    return grid_settings.profile


@pytest.fixture
def small(profile: Profile, tmp_path: Path) -> harness.Run:
    """A run of two methods on one data set."""
    return harness.run(profile, datasets="ag_news", methods=["one", "two"], device="cpu", out=tmp_path / "small")


def test_importing_the_harness_is_light() -> None:
    """``import harness`` loads neither torch nor pandas, and lists the names of the API."""
    code = (
        "import sys, harness; print({'torch', 'pandas'} & set(sys.modules), set(harness.__all__) <= set(dir(harness)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set() True\n"
    with pytest.raises(AttributeError, match="no attribute 'ran'"):
        _ = harness.ran  # type: ignore[attr-defined]


def test_a_run_gives_one_row_per_cell(small: harness.Run, tmp_path: Path) -> None:
    """Results have the coordinates, accuracy, cost and time of every cell under flat names."""
    assert small.outcome is not None
    assert (small.path, small.outcome.measured, small.outcome.failed) == (tmp_path / "small", 4, 0)
    table = small.results()
    assert table[["dataset", "method", "point"]].to_numpy().tolist() == [
        ["ag_news", method, point] for method in ("one", "two") for point in ("a", "b")
    ]
    assert not any("." in column for column in table)
    assert table["accuracy"].between(0, 1).all()
    assert (table["mean_layers"] == 3).all()
    assert (table["reference"] == "one").all() and table["speedup"].notna().all()
    assert table["synthetic"].all() and (table["backbone"] == "embedded").all()


def test_running_again_resumes(small: harness.Run, profile: Profile) -> None:
    """Finished cells are kept unless ``fresh`` is given; new methods are added to the folder."""
    again = harness.run(profile, datasets=["ag_news"], methods=("one", "three"), device="cpu", out=str(small.path))
    assert again.outcome is not None
    assert (again.outcome.measured, again.outcome.kept) == (2, 2)
    assert set(harness.open_run(small.path).results()["method"]) == {"one", "two", "three"}
    fresh = harness.run(profile, datasets="ag_news", methods="one", device="cpu", out=small.path, fresh=True)
    assert fresh.outcome is not None and fresh.outcome.measured == 2


def test_options_reach_the_run(stage: Any, profile: Profile, tmp_path: Path) -> None:
    """Settings, sizes, rounds, seeds and execution replace the profile's; a variant made by settings is measured."""
    run = harness.run(
        profile,
        datasets="ag_news",
        settings={"two-wide": {"like": "two", "width": 4}, "training": {"epochs": 2}},
        seeds=3,
        rounds=1,
        max_train=20,
        max_test=8,
        backbone="embedded",
        execution={"batch_size": 2},
        device="cpu",
        out=tmp_path / "run",
    )
    table = run.results()
    assert set(table["method"]) == {"one", "two", "three", "two-wide"}
    assert stage.configs["two"] == {"speeds": [0.1, 0.5, 0.8], "epochs": 2, "width": 4}
    for column, value in (("seed", 3), ("rounds", 1), ("n", 8), ("batch_size", 2)):
        assert (table[column] == value).all(), column


def test_fit_only_measures_nothing(profile: Profile, tmp_path: Path) -> None:
    """``fit_only`` fills the cache; the run has no results yet."""
    run = harness.run(profile, datasets="ag_news", device="cpu", out=tmp_path / "run", fit_only=True)
    assert run.outcome is not None
    assert (run.outcome.fitted, run.outcome.failed) == (3, 0)
    assert run.results().empty and run.samples().empty
    assert "0 cells" in repr(run) and "<code>" in run._repr_html_()


def test_samples_are_rows_of_the_matching_cells(small: harness.Run) -> None:
    """Every sample has a row per cell; arguments select cells, and unknown ones bring the nearest name."""
    assert len(small.samples()) == 4 * 12
    rows = small.samples("two", "ag_news", point="b", seed=0)
    assert len(rows) == 12
    assert rows.columns[:4].tolist() == ["dataset", "method", "point", "seed"]
    assert set(rows["method"]) == {"two"} and {"correct", "exit_layer", "length"} <= set(rows.columns)
    with pytest.raises(UnknownNameError, match="unknown method 'tow': did you mean two.* known: one, two"):
        small.samples("tow")
    with pytest.raises(UnknownNameError, match="unknown seed '9': known: 0"):
        small.samples(seed=9)


def test_a_run_shows_itself(small: harness.Run) -> None:
    """The text has the folder and the number of cells; a notebook gets a table of the cells."""
    assert repr(small) == f"Run('{small.path}': 4 cells of 2 methods on 1 datasets, 0 failed)"
    page = small._repr_html_()
    assert page.count("<tr") == 1 + 4
    assert "speedup" in page


def test_the_report_is_written(small: harness.Run) -> None:
    """The returned path is the page."""
    page = small.report()
    assert page == small.path / "report" / "index.html"
    assert "synthetic" in page.read_text(encoding="utf-8")


def test_runs_are_compared_by_object_folder_or_packed_file(small: harness.Run, tmp_path: Path) -> None:
    """All three give the same; limits decide what is an alarm."""
    write(pack(small.path), tmp_path / "packed.json")
    for base in (small, str(small.path), tmp_path / "packed.json"):
        found = harness.compare(base, small, margin=0.01, slower=0.5)
        assert (len(found.changes), found.alarms) == (4, [])
        assert (found.limits.margin, found.limits.margin_elsewhere, found.limits.slower) == (0.01, 0.01, 0.5)
    assert harness.compare(small, small).limits.margin == 0.005


def test_methods_are_listed(stage: Any) -> None:
    """Every method has a row with kind, role and first line of its docstring; variants come from the profile asked for."""
    stage.add("guess", kind="control", role="random-exits")
    table = harness.list_methods("quick").set_index("name")
    assert table.loc["guess", ["kind", "role"]].tolist() == ["control", "random-exits"]
    assert table.loc["one", "description"] == "A fake method: it trains nothing and records its calls on the stage."
    assert table.loc["one", "role"] == ""
    assert set(registry.names()) <= set(table.index)
    variants = harness.list_methods()
    assert (variants["kind"] == "variant").any()


def test_wrong_input_is_refused_before_anything_is_fitted(stage: Any, profile: Profile, tmp_path: Path) -> None:
    """Errors are those of the command line: unknown names, values out of range, folders without a run."""
    with pytest.raises(UnknownNameError, match="did you mean one"):
        harness.run(profile, methods="on", device="cpu", out=tmp_path / "run")
    with pytest.raises(SettingsError, match=r"rounds = 0 .*\n?.*"):
        harness.run(profile, rounds=0, device="cpu", out=tmp_path / "run")
    with pytest.raises(ConfigError, match="give a table per method"):
        harness.run(profile, settings={"one.epochs": 3}, device="cpu", out=tmp_path / "run")  # type: ignore[dict-item]
    with pytest.raises(ResultError, match="no run at"):
        harness.open_run(tmp_path / "none")
    with pytest.raises(ResultError):
        harness.compare(tmp_path / "none", tmp_path / "none")
    assert stage.fits == []


def test_the_api_and_the_command_line_share_settings(profile: Profile, tmp_path: Path) -> None:
    """A complete Settings object is used without changes."""
    from harness.api import execute

    chosen = Settings(
        replace(Settings(profile, tmp_path)).profile.model_copy(update={"methods": ["one"]}), tmp_path / "r"
    )
    run = execute(chosen)
    assert set(run.results()["dataset"]) == {"ag_news", "lcqmc"}
