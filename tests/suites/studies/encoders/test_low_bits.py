"""The study of early exits on engines of few bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.encoder.device_kernels.packed_linear import can_pack
from harness.encoder.shape import EncoderShape
from suites.studies.encoders import low_bits

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no packed weights")

ENGINES = [name for name in low_bits.ENGINES if name != "bfloat16" or can_pack(torch.bfloat16)]  # that run here


def test_all_executors_run_on_all_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exits known beforehand are the same on every engine, a rule finds nearly the same ones, and ratios are to full depth."""
    monkeypatch.setitem(low_bits.SHAPES, "12x384", EncoderShape(4, 32, 4, 64, 3000))
    out = tmp_path / "low-bits.json"
    options = ["--shapes", "12x384", "--samples", "24", "--rounds", "2", "--batch-size", "8", "--out", str(out)]
    assert low_bits.main(options) == 0
    rows = {(row["engine"], row["executor"]): row for row in json.loads(out.read_text(encoding="utf-8"))["rows"]}
    assert {*rows} == {(engine, executor) for engine in ENGINES for executor in low_bits.RUN}
    for (engine, executor), row in rows.items():
        plain = rows["packed", executor]
        assert row["slowest"] <= row["samples_per_s"] <= row["fastest"]
        assert (row["of_full_depth"] == 1) == (executor == "bert") and (row["of_first_engine"] == 1) == (
            engine == "packed"
        )
        if executor in ("bert", "ladder", "look1"):
            assert row["mean_layers"] == plain["mean_layers"] and row["same_exits"] == 1
        else:
            assert row["mean_layers"] == pytest.approx(plain["mean_layers"], rel=0.2) and row["same_exits"] > 0.7
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2 + len(rows)
    left_out = {*low_bits.ENGINES} - {*ENGINES}
    assert all(f"engine '{name}'" in said.err and "not measured" in said.err for name in left_out)


def test_an_engine_that_cannot_run_here_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is measured."""
    monkeypatch.setattr("harness.engines.int8.can_pack", lambda dtype: False)
    assert low_bits.main(["--engines", "int8"]) == 2
    assert "low_bits: engine 'int8': it needs a build of torch with oneDNN" in capsys.readouterr().err
