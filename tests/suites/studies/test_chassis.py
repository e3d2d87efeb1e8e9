"""The study of engines at full depth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.core.errors import MethodError
from harness.encoder.shape import EncoderShape
from suites.studies import chassis
from suites.workloads.full_depth_engines import ENGINES, OURS, TRANSFORMERS, EngineWorkload, interleaved

TINY = EncoderShape(2, 16, 2, 24, 2000, max_positions=128)
LEFT = (OURS[0], TRANSFORMERS, "int8-call")
WITHOUT = ",".join(name for name in ENGINES if name not in LEFT)


def test_a_table_of_engines_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every engine has a row for every batch size; one that cannot be used says why; a finished file measures nothing."""

    def prepared(self: EngineWorkload, engine: str) -> None:
        if engine == "int8-call":
            raise MethodError("no such library: pip install it")
        prepare(self, engine)

    prepare = EngineWorkload.prepare
    monkeypatch.setattr(EngineWorkload, "prepare", prepared)
    monkeypatch.setitem(chassis.SHAPES, "minilm", TINY)
    out = tmp_path / "chassis.json"
    command = ["--shapes", "minilm", "--batch-size", "1,4", "--samples", "9", "--rounds", "2", "--out", str(out)]
    command += ["--without", WITHOUT]
    assert chassis.main(command) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["batch_size"], row["engine"]) for row in found["rows"]] == [
        (size, name) for size in (1, 4) for name in LEFT
    ]
    ours, theirs, missing = found["rows"][:3]
    assert missing["reason"].startswith("no such library") and "samples_per_s" not in missing
    assert theirs["agree"] == 1 and 0 < theirs["difference"] < 1e-4
    assert len(theirs["seconds"]) == 2 and theirs["slowest"] <= theirs["samples_per_s"] <= theirs["fastest"]
    ratios = np.array(theirs["seconds"]) / np.array(ours["seconds"])
    assert ours["of_fastest"] == pytest.approx(float(np.median(ratios))) and theirs["of_fastest"] == 1
    assert [goal["holds"] for goal in found["goals"]] == [goal["of_fastest"] >= 0.95 for goal in found["goals"]]
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "not run: no such library" in text and "minilm, batch 4: ours eager reaches" in text
    monkeypatch.setattr(EngineWorkload, "run", lambda *_: pytest.fail("measured again"))
    capsys.readouterr()
    assert chassis.main(command) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["rows"] == found["rows"]
    assert chassis.main([*command, "--rounds", "3"]) == 2
    assert "made with other settings (rounds)" in capsys.readouterr().err


def test_rounds_alternate_after_one_for_warm_up() -> None:
    """No engine always runs first, and the first round is not counted."""
    ran: list[str] = []

    def run(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    found = interleaved(run, ["a", "b"], 2)
    assert "".join(ran) == "baabba"
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_samples_have_the_lengths_of_the_issue() -> None:
    """Lengths are 8 to 128 with a median near 49, and answers of the random model differ between samples."""
    workload = EngineWorkload(TINY, 400)
    lengths = workload.tokens.lengths.numpy()
    assert lengths.min() >= 8 and lengths.max() <= 128 and 46 <= np.median(lengths) <= 52
    workload.prepare(OURS[0])
    logits = workload.run(OURS[0], 32).predictions.logits
    assert logits.std(0).min() > 0.01
