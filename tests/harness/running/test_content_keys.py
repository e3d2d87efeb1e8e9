"""Cells and fits follow the content of weights, config, tokenizer and named files, not their paths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from harness.core.errors import BackboneError
from harness.core.files import write_json
from harness.encoder import checkpoint
from harness.encoder.backbone import load_backbone
from harness.results.run_folder import RunFolder
from harness.running import session as module
from harness.running.content_keys import ContentKeys
from harness.running.fits.fit_store import FITS
from harness.running.grid import Grid
from harness.running.measuring import cell_groups
from harness.running.record import build_result
from harness.running.run_settings import Settings
from harness.running.session import Session


@pytest.fixture
def folder(saved_backbone: Path) -> Path:
    """Return a backbone's folder."""
    return saved_backbone


@pytest.fixture
def settings(stage: Any, grid_settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings with one dataset and two fakes that use the backbone in the folder."""
    monkeypatch.setattr(module, "load_backbone", load_backbone)
    changes = {"datasets": ["ag_news"], "methods": ["one", "three"], "backbones": {"en": str(folder), "zh": "missing"}}
    return replace(grid_settings, profile=grid_settings.profile.model_copy(update=changes))


def run(settings: Settings) -> tuple[int, int]:
    """Return how many cells were measured and kept."""
    outcome = Grid(settings).execute()
    assert not outcome.failed
    return outcome.measured, outcome.kept


def other_weights(folder: Path) -> None:
    """Change the weights only; the file keeps its size and its time of change."""
    path = folder / checkpoint.WEIGHTS
    times = path.stat()
    tensors = load_file(path)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    assert path.stat().st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_json(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    facts = json.loads((folder / name).read_text(encoding="utf-8"))
    change(facts)
    (folder / name).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def swapped(facts: dict[str, Any]) -> None:
    """Exchange the ids of two words."""
    words = facts["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": other_weights,
    "config": lambda f: other_json(f, "config.json", lambda facts: facts.update(layer_norm_eps=1e-5)),
    "vocabulary": lambda f: other_json(f, "tokenizer.json", swapped),
    "tokenizer config": lambda f: other_json(f, "tokenizer_config.json", lambda x: x.update(do_lower_case=False)),
    "added tokens": lambda f: (f / "special_tokens_map.json").write_text('{"mask_token": "[UNK]"}'),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_content_in_the_same_folder_is_fitted_and_measured_again(
    stage: Any, settings: Settings, folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No cell is kept, every method is fitted again, and one line says why; then all is kept."""
    assert run(settings) == (4, 0)
    assert run(settings) == (0, 4)
    capsys.readouterr()
    CHANGES[case](folder)
    fits = len(stage.fits)
    assert run(settings) == (4, 0)
    assert len(stage.fits) == fits + 2
    assert capsys.readouterr().err.count("cells of other settings, data or weights") == 1
    assert run(settings) == (0, 4)
    assert len(stage.fits) == fits + 2


def test_the_same_content_elsewhere_keeps_cells_and_fits(stage: Any, settings: Settings, folder: Path) -> None:
    """A moved folder, other time stamps and files that nobody reads change nothing."""
    run(settings)
    moved = folder.parents[0] / "moved" / folder.name
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("other")
    (moved / "pytorch_model.bin").write_bytes(b"never read")
    elsewhere = settings.profile.model_copy(update={"backbones": {"en": str(moved)}})
    fits = len(stage.fits)
    assert run(replace(settings, profile=elsewhere)) == (0, 4)
    assert run(replace(settings, profile=elsewhere, out=settings.out.with_name("second"))) == (4, 0)
    assert len(stage.fits) == fits


def test_cells_whose_key_followed_the_path_are_measured_again(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing shows with which weights they were measured; they can be read until then."""
    with monkeypatch.context() as old:  # results of that version had no key
        old.setattr(cell_groups, "build_result", lambda *facts: build_result(*facts[:-2], "", facts[-1]))
        run(settings)
    for path in (settings.out / "plan").iterdir():
        write_json(path, {**json.loads(path.read_text()), "key": "0123456789abcdef"})
    assert len(RunFolder.open(settings.out).results()) == 4
    capsys.readouterr()
    assert run(settings) == (4, 0)
    assert "or of a version whose keys cannot be compared: 4, measured again" in capsys.readouterr().err


def test_a_missing_backbone_stops_the_run_before_any_fit(stage: Any, settings: Settings, folder: Path) -> None:
    """A folder without weights is reported at once, and stored cells stay."""
    run(settings)
    fits = len(stage.fits)
    (folder / checkpoint.WEIGHTS).unlink()
    with pytest.raises(BackboneError, match="no model.safetensors"):
        run(settings)
    assert len(stage.fits) == fits
    assert len(RunFolder.open(settings.out).results()) == 4


def having(settings: Settings, **own: Any) -> Settings:
    profile = settings.profile.model_copy(update={"method": {"three": own}})
    return replace(settings, profile=profile)


@pytest.mark.parametrize("wrap", [lambda path: path, lambda path: {"en": path}, lambda path: [1, path]])
@pytest.mark.parametrize("inner", ["", "deep/words.txt"])
def test_every_path_among_the_settings_is_read(
    stage: Any, settings: Settings, tmp_path: Path, wrap: Callable[[str], Any], inner: str
) -> None:
    """Keys of cells and fits follow the content of a file or folder that any setting of any method names."""
    words = tmp_path / "lexicon" / "deep" / "words.txt"
    words.parent.mkdir(parents=True)
    words.write_text("one")
    own = having(settings, lexicon=wrap(str(tmp_path / "lexicon" / inner)), rule="linear")

    def keys() -> tuple[str, str, str]:
        session = Session(own, "ag_news", 0)
        return session.fit_key("one"), session.fit_key("three"), ContentKeys(own).of("ag_news", "three")

    first = keys()
    assert keys() == first
    words.write_text("two")
    second = keys()
    assert first[0] == second[0]
    assert first[1] != second[1] and first[2] != second[2]


@pytest.mark.parametrize(
    "value", ["linear", "/", ".", "..", "~", "a" * 5000 + "/b", "nobody/knows", "a\0b.c", "~nobody/x"]
)
def test_words_are_not_paths(
    stage: Any, settings: Settings, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that happens to be the name of a folder here, a separator, and text of any kind name no content."""
    (tmp_path / "linear").mkdir()
    monkeypatch.chdir(tmp_path)
    assert having(settings, rule=value).profile.named_content("three") is None


def damage(folder: Path, name: str) -> Path:
    """Flip one bit of a file that still can be read afterwards."""
    (path,) = folder.rglob(name)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "training.json"])
def test_a_damaged_fit_is_made_again(
    stage: Any, settings: Settings, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit in any file of a fit is found, named in one line, and the same fit is made again."""
    only = replace(settings, profile=settings.profile.model_copy(update={"methods": ["one"]}))
    run(only)
    (place,) = (tmp_path / "geep-bench-cache" / FITS).iterdir()
    weights = (place / "model.safetensors").read_bytes()
    path = damage(place, name)
    stage.fits.clear()
    assert run(replace(only, out=tmp_path / "other")) == (2, 0)
    assert stage.fits == ["one ag_news 0"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "fitting again" in line]
    assert len(lines) == 1 and str(path) in lines[0]
    assert (place / "model.safetensors").read_bytes() == weights


def test_fits_without_checksums_are_reported_once(
    stage: Any, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache of an earlier version is not used, and a line says that it can be deleted."""
    old = tmp_path / "geep-bench-cache" / "fits"
    old.mkdir(parents=True)
    run(settings)
    err = capsys.readouterr().err
    assert err.count(f"{old} holds fits of an older version, which are not used: delete that folder") == 1
