"""Pretraining on a CUDA device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.encoder.checkpoint import read

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("more", [[], ["--multi-exit", "--accumulate", "2", "--dropout", "0.1"]])
def test_it_learns_compiled_in_bfloat16_and_resumes(
    more: list[str], pretrain: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training in one call and in two gives about the same loss, far better than frequencies, and is compiled."""
    recipe = [
        "--device",
        "cuda",
        "--precision",
        "bfloat16",
        "--steps",
        "300",
        "--learning-rate",
        "3e-3",
        "--rows",
        "32",
    ]
    recipe += ["--width", "64", "--heads", "1", "--save-every", "1000", *more]
    assert pretrain(tmp_path / "whole", *recipe) == 0
    assert pretrain(tmp_path / "parts", *recipe, "--stop-after", "0.0001") == 3
    assert pretrain(tmp_path / "parts", *recipe) == 0
    assert "torch.compile failed" not in capsys.readouterr().err
    for name in ("whole", "parts"):
        facts = json.loads((tmp_path / name / "pretraining.json").read_text(encoding="utf-8"))
        assert facts["run"]["compiled"] and facts["run"]["bf16"] and facts["run"]["step"] == 300
        assert facts["evaluation"]["perplexity"] < facts["evaluation"]["by_frequency"] / 3
        assert read(tmp_path / name).shape.width == 64
