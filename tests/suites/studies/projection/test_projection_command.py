"""The study of projection: calibrate, check and project, as a user runs it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from suites.studies.projection import calibration, projection_command
from suites.studies.projection.calibration import Calibration
from suites.studies.projection.device_card import card_text, read_device_card
from suites.workloads.random_model import EXECUTORS

TINY = "google/bert_uncased_L-2_H-128_A-2"
ONE = ["--device", "cpu", "--threads", "1"]
CHECK = ["--check", *ONE, "--backbone", TINY, "--samples", "8", "--batch-size", "4", "--rounds", "1"]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of this machine, measured in a hurry."""
    path = tmp_path_factory.mktemp("cards") / "here.toml"
    with pytest.MonkeyPatch.context() as patch:
        quick = partial(Calibration, rows=(1, 64), widths=(64, 128), tokens=(8, 32), moved=(4096, 1 << 16))
        patch.setattr(projection_command, "Calibration", quick)
        patch.setattr(calibration, "LEAST", 1e-4)
        patch.setattr(calibration, "cache_bytes", lambda: 1 << 18)
        assert projection_command.main(["--calibrate", str(path), *ONE, "--rounds", "2", "--dtype", "float32"]) == 0
    return path


def test_a_calibrated_card_is_complete_and_of_this_machine(card: Path) -> None:
    """The written card is read again, with the fingerprint of the machine and one value per constant."""
    found = read_device_card(str(card))
    assert found.kind == "cpu" and found.fingerprint["torch_threads"] == 1
    assert found.launch.low == found.launch.high
    rates = found.rates["float32"]
    assert rates.matrix.rows == [1, 64] and rates.cached is not None
    assert all(curve is not None for curve in (rates.first_attention, rates.gather, rates.norm, rates.activation))
    assert "--calibrate" in found.launch.source


def test_a_check_compares_every_executor_and_resumes(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that runs out of time goes on with the same command, keeps what it measured, and shows every executor."""
    out = tmp_path / "check.json"
    command = [*CHECK, "--card", str(card), "--out", str(out)]
    assert projection_command.main([*command, "--seconds", "0.000001"]) == 0
    assert "run the same command again" in capsys.readouterr().out
    code = projection_command.main(command)
    first = json.loads(out.read_text(encoding="utf-8"))
    assert [row["executor"] for row in first["rows"]] == list(EXECUTORS)
    for row in first["rows"]:
        assert row["error"] == pytest.approx(row["projected_seconds"] / row["measured_at_calibrated_speed"] - 1)
        assert row["layers"] >= 2 and row["rows_per_layer"] > 0
    worst = max(abs(row["error"]) for row in first["rows"])
    assert first["largest_error"] == pytest.approx(worst)
    assert code == (1 if worst > 0.15 else 0)
    assert f"of {len(EXECUTORS)} beyond 15%" in capsys.readouterr().out
    projection_command.main(command)
    assert json.loads(out.read_text(encoding="utf-8"))["parts"] == first["parts"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"torch_threads": 9},
            "was calibrated elsewhere (torch_threads: 9 there, 1 here): give --threads, or calibrate again",
        ),
        ({"cpu": "abacus"}, "was calibrated elsewhere (cpu: abacus there"),
    ],
)
def test_a_card_of_another_machine_is_refused(
    card: Path, tmp_path: Path, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check with another number of threads, or on another CPU, is refused in one line with exit code 2."""
    table = tomllib.loads(card.read_text(encoding="utf-8"))
    table["fingerprint"] |= change
    other = tmp_path / "other.toml"
    other.write_text(card_text(table), encoding="utf-8")
    assert projection_command.main([*CHECK, "--card", str(other), "--out", str(tmp_path / "x.json")]) == 2
    assert said in capsys.readouterr().err
    assert projection_command.main([*CHECK, "--card", "h200", "--out", str(tmp_path / "x.json")]) == 2
    assert "was not calibrated on this device" in capsys.readouterr().err


def test_projections_are_marked_and_have_ranges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For the H200, every executor has a range; the released loop is eager only; page and file say that nothing was measured."""
    out = tmp_path / "projection.json"
    options = ["--backbone", TINY, "--samples", "16", "--batch-size", "8", "--out", str(out)]
    assert projection_command.main(options) == 0
    text = capsys.readouterr().out
    assert text.startswith("projected, not measured: NVIDIA H200")
    assert "measured at" not in text
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["projected"] is True
    assert [row["executor"] for row in found["rows"]] == [
        *EXECUTORS,
        *(name for name in EXECUTORS if name != "faithful"),
    ]
    assert all(row["projected"] and row["seconds"][0] < row["seconds"][1] for row in found["rows"])
    waits = {row["executor"]: row["waits"] for row in found["rows"]}
    assert waits["ladder"] == 2 < waits["look1"] + 1 <= waits["faithful"]


def test_bad_cards_end_with_exit_code_2(
    tmp_path: Path, table: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A negative constant is named on one line."""
    bad = table("cpu")
    bad["synchronise"]["value"] = -1.0
    (tmp_path / "bad.toml").write_text(card_text(bad), encoding="utf-8")
    assert projection_command.main(["--card", str(tmp_path / "bad.toml"), "--samples", "8"]) == 2
    error = capsys.readouterr().err
    assert "synchronise.low = -1.0 is not allowed" in error
    assert len(error.splitlines()) == 1 or all(line.startswith("projection: ") for line in error.splitlines())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, launches, graphs, waits and copies are measured, too."""
    quick = partial(Calibration, rows=(1, 64), widths=(64, 128), tokens=(8, 32), moved=(4096, 1 << 16))
    monkeypatch.setattr(projection_command, "Calibration", quick)
    path = tmp_path / "gpu.toml"
    assert projection_command.main(["--calibrate", str(path), "--device", "cuda", "--rounds", "1"]) == 0
    found = read_device_card(str(path))
    assert found.kind == "cuda" and found.graph_launch is not None and found.kernel is not None
