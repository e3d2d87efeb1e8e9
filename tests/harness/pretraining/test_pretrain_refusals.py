"""What ``geep-bench pretrain`` refuses, and the one line that it prints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.cli import main as cli
from harness.core.errors import ConfigError, DeviceError, GeepBenchError, ResultError
from harness.encoder.masked_words import MaskedWordModel
from harness.pretraining import loop, model_card, plan, snapshot
from harness.pretraining.text.shards import Shards
from tests.harness.pretraining.conftest import Pretrain, assert_same


def test_invalid_accuracies_are_refused(pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong file and a folder without a card give an error in one line, and the card is unchanged."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "1")
    before = (out / "README.md").read_bytes()
    capsys.readouterr()
    for name, content in (("a.json", "[]"), ("b.json", '{"rows": [{}]}')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert model_card.main([str(out), "--accuracy", str(tmp_path / name)]) == 2
    assert model_card.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert (out / "README.md").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the step of the first infinite loss, and the last valid state is kept."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "30", "--stop-after", "0.0001")
    monkeypatch.setattr(loop.Trainer, "save", lambda self: None)  # as if no state had been due before
    began = snapshot.files(out / "training")[-1]
    forward, calls = MaskedWordModel.forward, iter(range(10**6))

    def poisoned(self: MaskedWordModel, *args: object) -> torch.Tensor:
        found = forward(self, *args)  # type: ignore[arg-type]
        return found * float("nan") if next(calls) == 6 else found

    monkeypatch.setattr(MaskedWordModel, "forward", poisoned)
    first = int(began.stem.split("-")[1])
    with pytest.raises(ConfigError, match=f"not finite at step {first + 7} of 30; the state in {began.name} is kept"):
        pretrain(out, "--steps", "30", "--save-every", "1000")
    assert snapshot.files(out / "training")[-1] == began


def test_a_full_disk_stops_the_run_without_a_loss(
    pretrain: Pretrain,
    tmp_path: Path,
    full_disk: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk gives an error in one line; older states are complete, and the run can be resumed exactly."""
    monkeypatch.setattr(plan, "_progress", lambda *_: None)  # pytest writes captured output to a file, too
    options = ["--steps", "6"]
    pretrain(tmp_path / "whole", *options)
    pretrain(tmp_path / "b", *options, "--stop-after", "0.00001")
    before = snapshot.files(tmp_path / "b" / "training")
    with full_disk(), pytest.raises(ResultError, match="cannot write .*free space"):
        pretrain(tmp_path / "b", *options)
    assert snapshot.files(tmp_path / "b" / "training") == before
    pretrain(tmp_path / "b", *options)
    assert_same(tmp_path / "whole", tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "4"], "shape: layers = 3, but 4 was asked for"),
        (["--width", "32"], "shape: width = 16, but 32 was asked for"),
        (["--learning-rate", "1e-4"], "recipe: learning_rate"),
        (["--steps", "5"], "amount: steps = 3, but 5 was asked for"),
        (["--multi-exit"], "recipe: multi_exit"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    options: list[str], said: str, pretrain: Pretrain, tmp_path: Path
) -> None:
    """The error names the difference; --fresh starts again."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "3")
    with pytest.raises(ConfigError, match=said):
        pretrain(out, "--steps", "3", *options)
    assert pretrain(out, "--steps", "3", *options, "--fresh") == 0


def test_a_start_from_other_weights_of_the_same_name_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    """A run resumes only with the weights that it began with, wherever their folder is."""
    for steps in ("2", "3"):
        pretrain(tmp_path / steps / "teacher", "--steps", steps)
    options = ["--steps", "1", "--layers", "2", "--init-from"]
    assert pretrain(tmp_path / "s", *options, str(tmp_path / "2" / "teacher")) == 0
    moved = shutil.copytree(tmp_path / "2" / "teacher", tmp_path / "moved" / "teacher")
    assert pretrain(tmp_path / "s", *options, str(moved)) == 0
    with pytest.raises(ConfigError, match=r"has a run with init_from = teacher \(\w+\), but teacher \(\w+\) was asked"):
        pretrain(tmp_path / "s", *options, str(tmp_path / "3" / "teacher"))


def test_shards_of_another_vocabulary_are_refused(
    pretrain: Pretrain, chinese: Shards, english: Shards, tmp_path: Path
) -> None:
    """--vocab-from must name the vocabulary that the shards were made with."""
    assert pretrain(tmp_path / "b", "--steps", "0", "--vocab-from", str(english.folder)) == 0
    with pytest.raises(ConfigError, match=f"another vocabulary than --vocab-from {chinese.folder}"):
        pretrain(tmp_path / "c", "--steps", "0", "--vocab-from", str(chinese.folder))


def test_states_of_another_shape_without_a_plan_are_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    """States without a plan are refused, and for another model's state the error names the tensor that does not fit."""
    pretrain(tmp_path / "a", "--steps", "2")
    pretrain(tmp_path / "b", "--steps", "2", "--width", "32")
    for path in snapshot.files(tmp_path / "b" / "training"):
        shutil.copy(path, tmp_path / "a" / "training")
    with pytest.raises(ResultError, match="state of a model of another shape"):
        pretrain(tmp_path / "a", "--steps", "2")
    (tmp_path / "a" / "training" / "plan.json").unlink()
    with pytest.raises(ResultError, match="no plan.json"):
        pretrain(tmp_path / "a", "--steps", "2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", "18", "--heads", "4"], "not divisible by --heads 4"),
        (["--steps", "-1"], "--steps: steps = -1 is not allowed: give an integer of at least 0"),
        (["--rows", "0"], "--rows: rows = 0 is not allowed: give an integer of at least 1"),
        (["--learning-rate", "nan"], "--learning-rate: learning_rate = NaN is not allowed"),
        (["--mask-share", "1"], "--mask-share: mask_share = 1.0 is not allowed: give a number above 0 and below 1"),
        (["--lang", "zh"], "--lang zh, but the shards"),
        (["--steps", "1", "--tokens", "5"], "not allowed with"),
        (["--length", "4"], "at least 8 tokens"),
        (["--init-from", "nowhere"], "no config.json in nowhere"),
    ],
)
def test_invalid_options_are_one_line(options: list[str], said: str, pretrain: Pretrain, tmp_path: Path) -> None:
    """Invalid options are reported before training."""
    with pytest.raises(GeepBenchError, match=said) as caught:
        pretrain(tmp_path / "b", *options)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.rglob("state-*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lang", "en", "--out", "o"], "no shards in o/training/shards: give text with --corpus"),
        (["--corpus", "c.txt", "--out", "o"], "--corpus needs --lang"),
        (["--corpus", "c.txt", "--lang", "en"], "--out DIR"),
        (["--corpus", "empty.txt", "--lang", "en", "--out", "o"], "has no text"),
        (["--corpus", "latin.txt", "--lang", "en", "--out", "o"], "line 1: not UTF-8"),
        (["--corpus", "c.txt", "--lang", "en", "--out", "o", "--vocab", "9999"], "gives only [0-9]+ pieces"),
        (["--corpus", "test.parquet", "--lang", "en", "--out", "o"], "dev or test split"),
        (["--corpus", "c.txt", "--shards-only", "--lang", "en"], "--shards DIR"),
    ],
)
def test_unusable_corpora_are_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unusable corpus gives exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text("some words here\n\nand others there\n", encoding="utf-8")
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("latin.txt").write_bytes("naïve".encode("latin-1"))
    assert cli.main(["pretrain", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert pd.Series([lines[-1]]).str.contains(said).all()
    assert all(line.startswith(("pretrain: ", "geep-bench: ")) for line in lines)
    assert not list(tmp_path.rglob("shards.json"))


def test_too_little_memory_is_reported_with_advice(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full device memory gives an error with advice."""

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(MaskedWordModel, "forward", full)
    with pytest.raises(DeviceError, match="memory is full with --rows 8: halve it and double --accumulate"):
        pretrain(tmp_path / "b", "--steps", "2")
