"""Stored parts of a study belong to the content of a backbone, not to its path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import registry
from harness.encoder import checkpoint
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.running.run_settings import make_settings
from suites.studies.distil_grid.grid_study import DistilGrid
from suites.studies.exit_learnability import ExitLearnability
from suites.studies.shared import resume_file
from suites.studies.shared.resume_file import ResumeFile
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


@pytest.mark.parametrize("reader", ["nobody", "a method", "the study"])
def test_other_texts_without_labels_have_another_key(tmp_path: Path, reader: str) -> None:
    """Only if a method or the study learns from them: stored parts of others, also of earlier versions, stay valid."""
    place = tmp_path / "mine"
    place.mkdir()
    for split in ("train", "test"):
        (place / f"{split}.csv").write_text("text,label\na,0\nb,1\n")
    own = [("geep", "table_rows", "unlabelled")] if reader == "a method" else []
    settings = make_settings("quick", datasets=["mine"], data=tmp_path, overrides=own)

    def key() -> str:
        return str(asked_for(settings, reads_unlabelled=reader == "the study")["key"])

    keys = [key()]
    for text in ("first", "second"):
        (place / "unlabelled.csv").write_text(f"text\n{text}\n")
        keys.append(key())
        assert key() == keys[-1], "nothing has changed"
    assert len(set(keys)) == (1 if reader == "nobody" else 3)
    (place / "unlabelled.csv").unlink()
    assert key() == keys[0]


def test_the_study_of_exits_reads_texts_without_labels() -> None:
    """It learns from them whatever its methods do; no other study does."""
    assert ExitLearnability.reads_unlabelled and not DistilGrid.reads_unlabelled


def test_weights_of_another_version_have_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts measured with weights of an older training are refused, as cells of it are measured again."""
    settings = make_settings("quick", datasets=["ag_news"])
    first = asked_for(settings)["key"]
    monkeypatch.setattr(type(registry.get("geep")), "weights_version", 99)
    assert asked_for(settings)["key"] != first


def test_a_file_names_the_code_that_measured_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study that another version of the code goes on with says so, in its file and on the terminal; the same code does not."""
    place = tmp_path / "study.json"
    for commit, part in (("old", "a"), ("old", "b"), ("new", "c"), ("new", "d")):
        monkeypatch.setattr(resume_file, "environment_facts", lambda commit=commit: {"commit": commit})
        ResumeFile(place, "study", {}).store(part, 1)
        said = capsys.readouterr().err
        assert ("commit old" in said) == (commit == "new")
    data = json.loads(place.read_text(encoding="utf-8"))
    assert (list(data["parts"]), data["fingerprint"]) == (["a", "b", "c", "d"], {"commit": "new"})
    assert data["earlier"] == [{"commit": "old"}]
