"""Profiles: data, checked on loading."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import ConfigError, UnknownNameError
from harness.running import profile
from harness.running.settings import Settings, validate_settings

GOOD = """
title = "mine"
source = "embedded"
datasets = ["ag_news"]
methods = ["bert"]
[execution]
batch_size = 4
[training]
epochs = 2
learning_rate = 0.1
[method.fastbert]
epochs = 9
"""


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["quick", "mini", "paper", "scratch", "rivals"])
def test_official_profiles_load(name: str, tmp_path: Path) -> None:
    """Each is valid, bears its name, measures its reference, and names nobody who does not exist, in no table."""
    found = profile.load(name)
    data = tmp_path if found.source == "local" else None
    if data:
        for dataset in found.datasets:
            (data / dataset).mkdir()
            (data / dataset / "train.csv").touch()  # nobody reads it yet
    validate_settings(Settings(found, tmp_path / "run", data))
    assert found.name == name
    assert name in profile.names()
    assert found.reference in found.methods


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """A path gives a profile named after the file, with defaults for what it leaves out."""
    found = profile.load(write(tmp_path, GOOD))
    assert (found.name, found.seeds, found.rounds, found.max_train) == ("mine", [0], 3, None)
    assert (found.execution.batch_size, found.execution.protocol) == (4, "modern")


def test_a_methods_own_settings_win(tmp_path: Path) -> None:
    """What stands under the method overrides what stands under training."""
    found = profile.load(write(tmp_path, GOOD))
    assert found.config("bert")["epochs"] == 2
    assert found.config("fastbert")["epochs"] == 9
    assert found.config("fastbert")["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("title", "titel"), "titel|title"),
        (('source = "embedded"', 'source = "cloud"'), "source"),
        (("batch_size = 4", "batch_size = 0"), r"execution\.batch_size"),
        (("batch_size = 4", 'order = "random"'), r"execution\.order"),
        (("batch_size = 4", "batch = 4"), r"execution\.batch"),
        (('datasets = ["ag_news"]', 'datasets = "ag_news"'), "datasets"),
        (('methods = ["bert"]', 'methods = ["bert"]\nrounds = 0'), "rounds"),
        (('methods = ["bert"]', 'methods = ["bert"]\nmax_length = 3'), "max_length"),
        (('methods = ["bert"]', 'methods = ["bert"]\nmax_train = 0'), "max_train"),
        (('methods = ["bert"]', 'methods = ["bert"'), "not valid TOML"),
        (("[method.fastbert]\nepochs = 9", "[method]\nfastbert = 3"), r"method\.fastbert"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    """The message names file and key, in one line."""
    assert change[0] in GOOD
    with pytest.raises(ConfigError, match=words) as caught:
        profile.load(write(tmp_path, GOOD.replace(*change)))
    assert "mine.toml" in str(caught.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 end in a message, too."""
    with pytest.raises(ConfigError, match="UTF-8"):
        profile.load(write(tmp_path, b"title = '\xff\xfe'"))


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    """Names bring the nearest; paths bring the names there are."""
    with pytest.raises(UnknownNameError, match=r"unknown profile 'quik': did you mean quick"):
        profile.load("quik")
    with pytest.raises(ConfigError, match=r"no profile file .*none\.toml.*quick"):
        profile.load(str(tmp_path / "none.toml"))
