"""The wheel is built without a network, installed outside the checkout, and run there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "geep", "baselines", "suites", "reports")
DATA = {".cu", ".h", ".cpp", ".j2", ".toml", ".json", ".sh"}


def data_files() -> set[str]:
    """Return files of the packages that code reads at run time, as paths from the repository root."""
    found = {path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.suffix in DATA}
    return {
        path.relative_to(ROOT).as_posix() for path in found if "published" not in path.parts and path.suffix != ".sh"
    }


def modules() -> set[str]:
    """Return Python modules of the packages, as paths from the repository root."""
    return {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


def run(command: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)  # type: ignore[call-overload]
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, without build folders of the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel without a network needs setuptools")
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "published"))
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-q", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", place, source])
    (found,) = place.glob("geep_bench-*.whl")
    return found


def test_the_wheel_has_all_modules_and_data(wheel: Path) -> None:
    """Every module, profile, template, CUDA source, header and reference result is in the wheel."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = data_files()
    assert {Path(name).suffix for name in wanted} >= {".cu", ".h", ".cpp", ".j2", ".toml", ".json"}
    assert sorted((wanted | modules()) - inside) == []


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ``bin`` of a new environment with the wheel and the dependencies of this one, but without the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    (packages,) = folder.glob("lib/python*/site-packages")
    heavy = {str(importlib.metadata.distribution(name).locate_file("")) for name in ("torch", "transformers", "pandas")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(heavy)) + "\n", encoding="utf-8")
    offline = ["--no-deps", "--no-index", "-q", "--disable-pip-version-check"]
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            folder / "bin" / "python",
            "install",
            *offline,
            "--ignore-installed",
            wheel,
        ]
    )
    return folder / "bin"


def clean_environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GEEP_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "GEEP_BENCH_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    """The installed ``geep-bench`` lists profiles and measures a small ``quick`` from an empty folder."""
    environment = clean_environment(tmp_path)
    where = "import harness, suites.profiles, sys; print(harness.__file__, list(suites.profiles.__path__)[0])"
    places = run([installed / "python", "-c", where], cwd=tmp_path, env=environment).stdout.split()
    assert all(Path(place).is_relative_to(installed.parent) for place in places)
    listed = run([installed / "geep-bench", "list", "profiles"], cwd=tmp_path, env=environment).stdout
    assert {path.stem for path in (ROOT / "suites" / "profiles").glob("*.toml")} == set(
        re.findall(r"^(\S+)", listed, re.MULTILINE)
    )
    untrained = [
        installed / "python",
        "-m",
        "harness.pretraining.untrained",
        "--texts",
        "texts.txt",
        "--out",
        "backbone",
    ]
    (tmp_path / "texts.txt").write_text("eins zwei drei\nvier fünf sechs\n", encoding="utf-8")
    run([*untrained, "--layers", "3", "--width", "16", "--heads", "2", "--vocab", "60"], cwd=tmp_path, env=environment)
    options = ["--methods", "bert", "--datasets", "lcqmc", "--max-train", "40", "--max-test", "20", "--rounds", "1"]
    small = ["--backbone", "zh=backbone", "--device", "cpu", "--set", "training.epochs=1"]
    ran = run(
        [installed / "geep-bench", "run", "--profile", "quick", *options, *small], cwd=tmp_path, env=environment
    ).stdout
    assert "cells: 1 measured, 0 kept from before, 0 failed" in ran
    page = (tmp_path / "runs" / "quick" / "report" / "index.html").read_text(encoding="utf-8")
    assert "lcqmc" in page and "synthetic" in page
