"""The study of encoder families: states of transformers, and FLOPs of all executors, also of texts of 512 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.encoder.layout import Layout
from suites.studies.encoders import encoder_families
from suites.workloads.family_models import FAMILY_MODELS


def test_long_texts_run_on_every_executor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With 320 tokens, moved positions and local layers equal transformers', and executors count what torch counts."""
    out = tmp_path / "families.json"
    assert encoder_families.main(["--families", "roberta,modernbert", "--length", "320", "--out", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["family"] for row in rows] == ["roberta", "modernbert"]
    for row in rows:
        assert len(row["differences"]) == 5 and max(row["differences"]) < 1e-4
        assert len(row["flops"]) == 24 and all(ours == torchs > 0 for ours, torchs in row["flops"].values())
    full, local = (row["flops"]["full, paper"][0] for row in rows)
    assert local < full  # though ModernBERT's inner layers are gated
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "texts of up to 320 tokens" in text and text.count("24 of 24") == 2
    assert "24 of 24" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["counts", "states"])
def test_a_fault_is_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs that are not counted, or positions that are not rotated, end the study with exit code 1 and their names."""
    if fault == "counts":
        tally = Layout.tally
        monkeypatch.setattr(Layout, "tally", lambda self, queries="all", *, ragged=False, reach=None: tally(self))
    else:
        angles = Layout.rotary_angles
        monkeypatch.setattr(
            Layout, "rotary_angles", lambda self, *size: tuple(map(torch.ones_like, angles(self, *size)))
        )
    command = ["--families", "modernbert", "--length", "80", "--out", str(tmp_path / "families.json")]
    assert encoder_families.main(command) == 1
    named = "full, modern" if fault == "counts" else "h1, h2"
    assert f"other FLOPs than torch's: {named}" in capsys.readouterr().out


def test_unknown_families_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One line lists those that there are."""
    assert encoder_families.main(["--families", "xlnet"]) == 2
    said = capsys.readouterr().err
    assert "xlnet" in said and FAMILY_MODELS[0] in said and "\n" not in said.strip()
