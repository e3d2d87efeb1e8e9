"""The study of executor speed at a given shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suites.studies import executor_speed
from suites.workloads.random_model import EXECUTORS, ExecutorWorkload

SMALL = ["--backbone", "google/bert_uncased_L-4_H-256_A-4", "--samples", "12", "--rounds", "1", "--device", "cpu"]


def test_every_executor_is_measured_at_every_batch_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is a row per executor and batch size and a line per goal; layer ratios follow from the executed layers."""
    out = tmp_path / "executors.json"
    where = tmp_path / "profile.txt"
    batches = ["--batch-size", "3,12", "--batch-tokens", "100"]
    assert executor_speed.main([*SMALL, *batches, "--out", str(out), "--profile", str(where)]) == 0
    assert "aten::addmm" in where.read_text(encoding="utf-8")
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["batch_size"] for row in found["executors"]] == [3] * 8 + [12] * 8 + [executor_speed.MOST] * 8
    assert [row["batch_tokens"] for row in found["executors"]] == [0] * 16 + [100] * 8
    for row in found["executors"]:
        assert (row["mean_layers"] == 4) == (row["executor"] == "bert")
        assert row["layer_ratio"] == pytest.approx(4 / row["mean_layers"])
        assert row["rows_per_launch"] * row["layer_launches"] == pytest.approx(12 * row["mean_layers"])
    small = {row["executor"]: row for row in found["executors"] if row["batch_size"] == 3}
    assert [small[name]["waits"] for name in ("bert", "ladder", "exact-k", "verified", "look1")] == [2, 2, 2, 3, 3]
    assert small["rebatch"]["layer_launches"] < small["shrink"]["layer_launches"] == small["faithful"]["layer_launches"]
    assert 3 < small["rebatch"]["waits"] < small["shrink"]["waits"] < small["faithful"]["waits"]
    assert "ladder over faithful at batch 3" in found["goals"]
    assert found["fingerprint"]["versions"]["torch"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 24 + len(found["goals"])


def test_all_executors_exit_at_the_same_layers() -> None:
    """Exits known in advance equal those found layer by layer, and samples exit at every layer."""
    workload = ExecutorWorkload("google/bert_uncased_L-4_H-256_A-4", 40, "cpu", "float32")
    exits = workload.exits.tolist()
    assert set(exits) == set(workload.model.answers)
    for name in EXECUTORS:
        found = workload.run(name, workload.execution(7)).exit_layer.tolist()
        assert found == ([3] * 40 if name == "bert" else exits), name
    with pytest.raises(KeyError):
        workload.run("fastest", workload.execution(7))


def test_goals_compare_executors_at_their_fastest() -> None:
    """Goals are ratios of the fastest rows at any batch size, or at the one that the goal names."""
    seconds = {
        ("bert", 32): 12.0, ("bert", 128): 10.0, ("ladder", 32): 4.0, ("ladder", 128): 5.0, ("exact-k", 32): 8.0,
        ("verified", 128): 5.0, ("shrink", 32): 9.0, ("shrink", 128): 6.0, ("rebatch", 32): 5.5,
        ("look1", 32): 4.5, ("faithful", 32): 24.0, ("faithful", 128): 1.0,
    }  # fmt: skip
    rows = [
        {"executor": name, "batch_size": size, "paired_seconds": value, "layer_ratio": 3.0}
        for (name, size), value in seconds.items()
    ]
    found = executor_speed.goals(rows)
    assert found["ladder over bert / layer ratio"] == pytest.approx(10 / 4 / 3)
    assert found["verified over shrink"] == pytest.approx(6 / 5)
    assert found["verified over rebatch"] == pytest.approx(5.5 / 5)
    assert found["rebatch over shrink"] == pytest.approx(6 / 5.5)
    assert found["ladder over faithful at batch 32"] == 6
    assert found["shrink over faithful at batch 32"] == pytest.approx(24 / 9)
    untuned = executor_speed.goals(rows, share=0.44)
    assert set(found) - set(untuned) == {
        f"{name} over bert / layer ratio" for name in ("ladder", "exact-k", "verified", "look1")
    }


def test_the_roof_is_a_share_of_a_measured_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The share is the FLOP/s of full depth over the rate of a matrix product."""
    monkeypatch.setattr(executor_speed, "ROOF_BATCH", 2)
    out = tmp_path / "roof.json"
    assert executor_speed.main([*SMALL, "--roof", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text(encoding="utf-8"))["roof"]
    assert row["share"] == pytest.approx(row["flops_per_s"] / row["matrix_flops_per_s"])
    assert row["flops_per_s"] > 0


@pytest.mark.parametrize("wrong", [["--compute", "fast"], ["--batch-size", "0"], ["--compute", "graphs"]])
def test_bad_options_are_one_line(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input gives one line and exit code 2."""
    assert executor_speed.main([*SMALL, *wrong]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_backbone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input gives one line and exit code 2."""
    assert executor_speed.main(["--backbone", "bert-bas-uncased", "--samples", "2", "--rounds", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
