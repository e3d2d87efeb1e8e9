"""The committed reference, and the command that compares the code with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.results.packed_run import load
from harness.running import profile
from harness.running.run_settings import Settings
from suites.cells import FIRST, cells_of
from suites.gate import reference


def test_the_reference_matches_the_profile_quick() -> None:
    """The reference has exactly the cells of profile ``quick``, with per-sample answers, and is small."""
    path = reference.expected("quick")
    packed = load(path)
    asked = {(c.dataset, c.method, c.point) for c in cells_of(Settings(profile.load("quick"), Path()))}
    one_point = {c[:2] for c in asked if c[2] == FIRST}  # methods without announced point names
    found = {(c.cell.dataset, c.cell.method, c.cell.point) for c in packed.cells}
    assert {(*c[:2], FIRST) if c[:2] in one_point else c for c in found} == asked
    assert len(found) == len(asked) == len(packed.cells)
    assert all(cell.correct is not None for cell in packed.cells)
    assert all(abs(cell.correct.mean() - cell.accuracy) < 1e-9 for cell in packed.cells if cell.correct is not None)
    assert path.stat().st_size < 400 * 1024


def test_the_key_depends_on_the_sources(tmp_path: Path) -> None:
    """An edit, a new source file and other pinned versions change the key; a text file does not."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "a.py").write_text("a")
    keys = [reference.sources_key(tmp_path)]
    for name, text in (
        ("harness/a.py", "b"),
        ("harness/b.cu", ""),
        ("constraints.txt", "torch"),
        ("harness/c.txt", ""),
    ):
        (tmp_path / name).write_text(text)
        keys.append(reference.sources_key(tmp_path))
    assert len(set(keys)) == 4
    assert keys[-1] == keys[-2]


@pytest.mark.parametrize(("ran", "compared", "expected"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 2, 2), (2, 0, 2)])
def test_it_runs_and_compares(
    ran: int, compared: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worse exit code counts, an unusable run is not compared, and fits have their own cache."""
    asked: list[list[str]] = []
    monkeypatch.setenv("GEEP_BENCH_CACHE", "elsewhere")

    def main(arguments: list[str]) -> int:
        asked.append(arguments)
        return ran if arguments[0] == "run" else compared

    monkeypatch.setattr("harness.cli.main.main", main)
    out = tmp_path / "out"
    assert reference.main(["--out", str(out), "--fresh"]) == expected
    more = ["--rounds", "7", "--max-test", "1000"]
    assert asked[0] == ["run", "--profile", "quick", *more, "--out", str(out), "--fresh"]
    assert os.environ["GEEP_BENCH_CACHE"] == str(out / "cache")
    assert asked[1:] == ([] if ran == 2 else [["compare", str(reference.expected("quick")), str(out), "--gate"]])


def test_the_reference_is_made_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--write`` packs the run into the file that the gate reads."""
    asked: list[list[str]] = []
    monkeypatch.setenv("GEEP_BENCH_CACHE", "elsewhere")
    monkeypatch.setattr("harness.cli.main.main", lambda arguments: asked.append(arguments) or 0)
    assert reference.main(["--write", "--out", str(tmp_path)]) == 0
    assert asked[1] == ["pack", str(tmp_path), str(reference.expected("quick"))]
