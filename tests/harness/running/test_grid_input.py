"""The input of a run: local data, backbones, names, devices and folders are validated before anything starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.core.errors import (
    BackboneError,
    ConfigError,
    DataError,
    DeviceError,
    ResultError,
    SettingsError,
    UnknownNameError,
)
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone
from harness.results.run_folder import RunFolder
from harness.running.grid import Grid
from harness.running.run_settings import Settings
from tests.harness.running.conftest import change, counts, run


@pytest.fixture
def backbones(tmp_path: Path, make_backbone: Callable[..., Backbone]) -> dict[str, str]:
    """Return a folder with a backbone, for both languages; the stage loads another one in its place."""
    made, folder = make_backbone(), tmp_path / "some-folder"
    folder.mkdir()
    checkpoint.write_folder(folder, made.shape, made.state)
    return {"en": str(folder), "zh": str(folder)}


def write_local(folder: Path, text: str, rows: int = 20) -> Path:
    for split, count in (("train", rows), ("dev", 6), ("test", 1)):
        place = folder / "mine"
        place.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"text": [text] * count, "label": np.arange(count) % 2}).to_parquet(place / f"{split}.parquet")
    return folder


def test_local_data_and_one_test_row(stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str]) -> None:
    """A user's folder is a dataset; one test row is enough; a changed file is measured again."""
    data = write_local(tmp_path / "data", "good 🙂 混合")
    settings = replace(change(settings, datasets=["mine"], methods=["one"], backbones=backbones), data=data)
    assert counts(run(settings)) == (2, 0, 0)
    (result, _) = RunFolder.open(settings.out).results()
    assert (result.cell.source, result.synthetic, result.quality.n) == ("local", False, 1)
    assert RunFolder.open(settings.out).samples(result.cell)["difficulty"].tolist() == [-1]
    assert counts(run(settings)) == (0, 2, 0)
    write_local(data, "another text")
    assert counts(run(settings)) == (2, 0, 0)


def three_sets(folder: Path) -> Path:
    """Write the datasets ``a``, ``b`` and ``c``."""
    for name in "abc":
        write_local(folder, "good").joinpath("mine").rename(folder / name)
    return folder


def break_set(folder: Path, name: str) -> None:
    (folder / name / "test.parquet").write_text("not a table")


def test_everything_is_loaded_before_the_first_training(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str]
) -> None:
    """A bad dataset in the middle ends the run at once; several bad inputs are reported together, one line for each."""
    data = three_sets(tmp_path / "data")
    settings = replace(change(settings, datasets=["a", "b", "c"], methods=["one"], backbones=backbones), data=data)
    break_set(data, "b")
    for act in (Grid.execute, Grid.fit):
        with pytest.raises(DataError, match=r"data/b/test.parquet"):
            act(Grid(settings))
    break_set(data, "c")
    with pytest.raises(SettingsError) as several:
        run(settings)
    assert [name in line for name, line in zip("bc", several.value.problems, strict=True)] == [True, True]
    assert stage.fits == []


@pytest.mark.parametrize("embedded", [False, True])
def test_texts_longer_than_the_positions_are_refused(
    embedded: bool, stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str]
) -> None:
    """A max_length that the backbone cannot read ends the run before anything is trained; its limit is accepted."""
    data = write_local(tmp_path / "data", "good")
    if not embedded:
        settings = replace(change(settings, datasets=["mine"], methods=["one"], backbones=backbones), data=data)
    with pytest.raises(
        BackboneError, match=r"max_length = 129, but backbone .* reads at most 128 tokens: lower max_len"
    ):
        run(change(settings, max_length=129))
    assert stage.fits == []
    assert counts(run(change(settings, max_length=128)))[2] == 0


def test_data_that_breaks_after_the_check_fails_its_own_cells(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The other datasets are measured; the same command measures the rest once the data is correct again."""
    data = three_sets(tmp_path / "data")
    settings = replace(change(settings, datasets=["a", "b", "c"], methods=["one"], backbones=backbones), data=data)
    kept = (data / "b" / "test.parquet").read_bytes()
    grid = Grid(settings)
    check = grid.check
    grid.check = lambda: (check(), break_set(data, "b"))[0]  # type: ignore[method-assign]
    assert counts(grid.execute()) == (4, 0, 1)
    assert "b one fit: " in capsys.readouterr().err
    (data / "b" / "test.parquet").write_bytes(kept)
    assert counts(run(settings)) == (2, 4, 0)
    assert RunFolder.open(settings.out).failures() == []


def test_names_of_backbone_folders(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name may be as long as file systems allow; one with a control character is refused."""
    settings = replace(
        change(settings, datasets=["mine"], methods=["one"]), data=write_local(tmp_path / "data", "good")
    )
    monkeypatch.chdir(tmp_path)
    for name in ("a\x1b[2J", "x" * 252):
        shutil.copytree(backbones["en"], name)
    with pytest.raises(BackboneError, match=r"control character '\\x1b'"):
        run(change(settings, backbones={"en": "a\x1b[2J"}))
    assert counts(run(change(settings, backbones={"en": "x" * 252}))) == (2, 0, 0)


def test_the_embedded_backbone_rejects_real_text(stage: Any, settings: Settings, tmp_path: Path) -> None:
    """The embedded backbone does not know the words; the message names the option to use."""
    data = write_local(tmp_path / "data", "a real text")
    with pytest.raises(ConfigError, match="--backbone en=DIR_OR_ID"):
        run(replace(change(settings, datasets=["mine"]), data=data))


def test_a_folder_without_some_of_the_datasets(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str]
) -> None:
    """One line names all that are missing and the option to run without; a name that is none of ours is a typing error."""
    write_local(tmp_path / "data", "text")
    (tmp_path / "data" / "mine").rename(tmp_path / "data" / "ag_news")
    three = change(settings, datasets=["weibo", "ag_news", "lcqmc"], backbones=backbones)
    local = replace(three, data=tmp_path / "data")
    with pytest.raises(DataError, match=r"lacks 2 of 3 datasets \(weibo, lcqmc\).* --datasets ag_news$"):
        Grid(local)
    assert stage.fits == []
    with pytest.raises(UnknownNameError, match="did you mean ag_news"):
        Grid(change(local, datasets=["ag_news", "agnews"]))
    assert run(change(local, datasets=["ag_news"])).failed == 0


def test_cores_that_are_lost_are_noted(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that was measured meanwhile has a note, and later cells have other facts; the first ones have none."""
    cores = iter([1, 1, 1, 0])  # before and after the passes of a cell, and in its facts
    monkeypatch.setattr("harness.running.measuring.cell_groups.usable_cores", lambda: next(cores, 0))
    one = change(settings, datasets=["ag_news"], methods=["one"])
    outcome = run(one)
    notes = {result.cell.point: result.notes for result in RunFolder.open(one.out).results()}
    assert outcome.failed == 0 and [note for note in notes["a"] if "cores" in note] == []
    assert [note for note in notes["b"] if "1 threads on 1 at the start and 0 at the end usable cores" in note]


def test_a_language_without_backbone_is_reported(stage: Any, settings: Settings) -> None:
    """The message names dataset, language and option."""
    with pytest.raises(ConfigError, match=r"'lcqmc' is zh, .*--backbone zh="):
        run(change(settings, backbones={"en": "embedded"}, datasets=["lcqmc"]))


@pytest.mark.parametrize(
    ("update", "error", "words"),
    [
        ({"methods": ["on"]}, UnknownNameError, "did you mean one"),
        ({"datasets": ["ag_new"]}, UnknownNameError, "did you mean ag_news"),
        ({"methods": []}, ConfigError, "nothing to run"),
        ({"datasets": []}, ConfigError, "nothing to run"),
        ({"seeds": []}, ConfigError, "nothing to run"),
        ({"reference": "on"}, UnknownNameError, "did you mean one"),
        ({"compare": {"on": ["two"]}}, UnknownNameError, "did you mean one"),
        ({"compare": {"one": ["tw"]}}, UnknownNameError, "did you mean two"),
        ({"source": "local"}, ConfigError, "--data DIR"),
    ],
)
def test_invalid_names_and_options_stop_at_once(
    stage: Any, settings: Settings, update: dict, error: type, words: str
) -> None:
    """Names and options are validated before anything is fitted."""
    with pytest.raises(error, match=words):
        run(change(settings, **update))
    assert stage.fits == []


def test_devices_and_folders_are_checked_first(stage: Any, settings: Settings, tmp_path: Path) -> None:
    """A missing CUDA device, missing data and an unwritable run folder are rejected before anything is fitted."""
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cpu"):
            run(replace(settings, device="cuda"))
    with pytest.raises(DataError, match="does not exist"):
        run(replace(settings, data=tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="--out"):
        run(replace(settings, out=tmp_path / "file" / "run"))
    assert stage.fits == []


def test_names_of_classes_and_remarks_on_data(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Results keep the names of the classes in their order; remarks on the data are printed once, whatever the seeds."""
    place = write_local(tmp_path / "data", "good") / "mine"
    for split in ("train", "dev", "test"):
        table = pd.read_parquet(place / f"{split}.parquet")
        (place / f"{split}.parquet").unlink()
        table["label"] = np.array(["yes", "no"])[table["label"]]
        table.to_csv(place / f"{split}.csv.gz", index=False)
    (place / "test-old.csv").write_text("?")
    some = change(settings, datasets=["mine"], methods=["one"], backbones=backbones, seeds=[0, 1])
    run(replace(some, data=tmp_path / "data"))
    results = RunFolder.open(settings.out).results()
    assert [result.label_names for result in results] == [["no", "yes"]] * len(results)
    said = "labels are names, numbered in sorted order: 0 = no, 1 = yes"
    assert all(said in result.notes for result in results)
    err = capsys.readouterr().err
    assert err.count(f"mine: {said}") == 1
    assert err.count("mine: not read: test-old.csv; ") == 1


def test_unknown_words_are_a_caveat(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """If many tokens are unknown to the tokenizer, results and terminal say which share."""
    some = change(settings, datasets=["mine"], methods=["one"], backbones=backbones)
    run(replace(some, data=write_local(tmp_path / "data", "🙂 🙂 🙂")))
    (result, _) = RunFolder.open(settings.out).results()
    share = "does not know 100.0% of the train tokens and 100.0% of the test tokens ([UNK])"
    assert any(share in note for note in result.notes)
    assert capsys.readouterr().err.count(share) == 1


def test_only_the_files_of_the_splits_decide_what_is_kept(
    stage: Any, settings: Settings, tmp_path: Path, backbones: dict[str, str]
) -> None:
    """Folders, pipes and broken links beside the data change nothing; a card beside them does."""
    data = write_local(tmp_path / "data", "good")
    some = replace(change(settings, datasets=["mine"], methods=["one"], backbones=backbones), data=data)
    assert counts(run(some)) == (2, 0, 0)
    (data / "mine" / ".ipynb_checkpoints").mkdir()
    (data / "mine" / "old.v1").mkdir()
    (data / "mine" / "lost.tsv").symlink_to("nowhere")
    os.mkfifo(data / "mine" / "pipe.tsv")
    assert counts(run(some)) == (0, 2, 0)
    (data / "mine" / "card.toml").write_text('label_names = ["bad", "good"]\n')
    assert counts(run(some)) == (2, 0, 0)
