"""Stored parts of a study belong to the content of a backbone, not to its path."""

from __future__ import annotations

from pathlib import Path

from harness.encoder import checkpoint
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.running.run_settings import make_settings
from suites.studies.shared.study import asked_for


def test_other_weights_in_the_same_folder_have_another_key(tmp_path: Path) -> None:
    """The key of the settings changes with the weights of the datasets' languages, and with nothing else in the folder."""
    shape = EncoderShape(1, 8, 2, 8, 10, 8)
    for language in ("en", "zh"):
        (tmp_path / language).mkdir()
        checkpoint.write_folder(tmp_path / language, shape, Encoder(shape).state_dict())
    settings = make_settings(
        "quick", datasets=["ag_news"], backbones={language: str(tmp_path / language) for language in ("en", "zh")}
    )
    first = asked_for(settings)["key"]
    (tmp_path / "en" / "README.md").write_text("other")
    checkpoint.write_folder(tmp_path / "zh", shape, Encoder(shape).state_dict())
    assert asked_for(settings)["key"] == first
    checkpoint.write_folder(tmp_path / "en", shape, Encoder(shape).state_dict())
    assert asked_for(settings)["key"] != first
