"""Profiles are validated on loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from harness.cli.main import main
from harness.core.errors import ConfigError, SettingsError, UnknownNameError
from harness.core.settings import StrictSettings
from harness.running import profile
from harness.running.content_keys import ContentKeys
from harness.running.grid import Grid
from harness.running.run_settings import Settings, make_settings, validate_settings

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


@pytest.mark.parametrize("name", ["quick", "mini", "paper", "scratch", "rivals", "twelve-layers", "twelve", "low-bits"])
def test_official_profiles_load(name: str, tmp_path: Path) -> None:
    """Each is valid, is named after its file, measures its reference, names existing methods only, and takes longer texts."""
    found = profile.load(name)
    data = tmp_path if found.source == "local" else None
    if data:
        for dataset in found.datasets:
            (data / dataset).mkdir()
            (data / dataset / "train.csv").touch()  # it is not read yet
    validate_settings(Settings(found, tmp_path / "run", data))
    assert found.name == name
    assert name in profile.names()
    assert found.reference in found.methods
    for length in (256, 512):
        longer = make_settings(found, max_length=length)
        assert {longer.of(dataset).execution.max_length for dataset in found.datasets} == {length}


def test_a_profile_by_path(tmp_path: Path) -> None:
    """A path gives a profile named after the file; missing keys get their defaults."""
    found = profile.load(write(tmp_path, GOOD))
    assert (found.name, found.seeds, found.rounds, found.max_train) == ("mine", [0], 3, None)
    assert (found.execution.batch_size, found.execution.protocol) == (4, "modern")


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    assert profile.load(write(tmp_path, b"\xef\xbb\xbf" + GOOD.encode())).title == "mine"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ('datasets = ["../../x"]', "a name cannot contain '/'"),
        ('methods = [".git"]', "begin with a dot"),
        (f'datasets = ["{"x" * 252}"]', "252 bytes: use at most 100"),
        ("speeds = [nan]", "give a number from 0 to 1"),
        (f"seeds = [{2**63}]", "from 0 to 9223372036854775807"),
        ("x = " + "[" * 5000 + "]" * 5000, "nested more than 64 levels"),
    ],
)
def test_hostile_values_are_refused_in_one_line(
    tmp_path: Path, wrong: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that leave a folder or do not fit a file name, NaN, huge seeds and deep nesting: exit code 2, one line."""
    key = wrong.split(" ")[0]
    text = "\n".join([wrong, *(line for line in GOOD.splitlines() if not line.startswith(key))])
    assert main(["run", "--profile", write(tmp_path, text), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "mine.toml" in line


SEEDS = GOOD.replace('methods = ["bert"]', 'methods = ["bert", "fastbert"]\nseeds = [0, 1]') + "seeds = [1]\n"


def test_a_method_can_have_some_of_the_seeds(tmp_path: Path) -> None:
    """Its table names them; a variant has those of its base, the command line can give more, and they are no setting."""
    text = SEEDS + '[method.twin]\nlike = "fastbert"\n'
    found = profile.load(write(tmp_path, text))
    assert {name: found.seeds_of(name) for name in ("bert", "fastbert", "twin")} == {
        "bert": [0, 1],
        "fastbert": [1],
        "twin": [1],
    }
    assert "seeds" not in found.config("fastbert")
    assert found.with_settings([("fastbert", "seeds", [0, 1])]).seeds_of("twin") == [0, 1]
    settings = make_settings(found, out=tmp_path / "run", device="cpu", datasets=["ag_news"])
    assert [(seed, method) for _, seed, method in Grid(settings).jobs()] == [(0, "bert"), (1, "bert"), (1, "fastbert")]


def test_seeds_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    """Also seeds that are no whole numbers, with file and table."""
    found = profile.load(write(tmp_path, SEEDS))
    with pytest.raises(ConfigError, match=r"nothing to run: fastbert: .*--seeds"):
        validate_settings(make_settings(found, device="cpu", methods=["fastbert"], seeds=[0]))
    wrong = profile.load(write(tmp_path, SEEDS.replace("seeds = [1]", 'seeds = "1"')))
    with pytest.raises(SettingsError, match=r"\[method.fastbert\]: seeds = \"1\" is not allowed"):
        validate_settings(make_settings(wrong, device="cpu"))


def test_a_dataset_can_have_other_rows(tmp_path: Path) -> None:
    """A table replaces rows and lengths of one dataset, options of the command line replace both, and other keys stay."""
    path = write(tmp_path, "max_train = 50\n" + GOOD + "[rows.lcqmc]\nmax_train = 20\nmax_length = 16\n")
    given = make_settings(path, device="cpu")
    keys = ContentKeys(given)
    plain = ContentKeys(make_settings(path, device="cpu", max_length=128, max_train=50))
    assert (given.of("lcqmc").profile.max_train, given.of("lcqmc").execution.max_length) == (20, 16)
    assert (given.of("ag_news").profile.max_train, given.of("ag_news").execution.max_length) == (50, 128)
    assert keys.of("ag_news", "bert") == plain.of("ag_news", "bert")
    assert keys.of("lcqmc", "bert") != plain.of("lcqmc", "bert")
    less = make_settings(path, device="cpu", max_train=10).of("lcqmc").profile
    assert (less.max_train, less.max_length) == (10, 16)


def test_settings_of_a_method_have_priority(tmp_path: Path) -> None:
    """Settings of the method override those of training."""
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
        (("batch_size = 4", "batch = 4"), r"\[execution\]: unknown key 'batch': did you mean batch_size"),
        (('datasets = ["ag_news"]', 'datasets = "ag_news"'), "datasets"),
        (('methods = ["bert"]', 'methods = ["bert"]\nrounds = 0'), "rounds"),
        (('methods = ["bert"]', 'methods = ["bert"]\nmax_length = 3'), "max_length"),
        (('methods = ["bert"]', 'methods = ["bert"]\nmax_train = 0'), "max_train"),
        (('methods = ["bert"]', 'methods = ["bert"]\nseeds = [-1]'), r"seeds\[0\] = -1 .* from 0 to "),
        (('methods = ["bert"]', 'methods = ["bert"]\nspeeds = [0.5, 2]'), r"speeds\[1\] = 2 .* from 0 to 1"),
        (('methods = ["bert"]', 'methods = ["bert"]\nrounds = "3"'), "an integer of at least 1, without quotes"),
        (('methods = ["bert"]', 'methods = ["bert"'), "not valid TOML"),
        (("[method.fastbert]\nepochs = 9", "[method]\nfastbert = 3"), r"method\.fastbert"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    """The message names file and key, in one line."""
    assert change[0] in GOOD
    with pytest.raises(ConfigError, match=words) as caught:
        profile.load(write(tmp_path, GOOD.replace(*change)))
    assert "mine.toml" in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 give a message."""
    with pytest.raises(ConfigError, match="UTF-8"):
        profile.load(write(tmp_path, b"title = '\xff\xfe'"))


def test_a_missing_profile(tmp_path: Path) -> None:
    """An unknown name gets the nearest one as a suggestion; a missing path gets all names."""
    with pytest.raises(UnknownNameError, match=r"unknown profile 'quik': did you mean quick"):
        profile.load("quik")
    with pytest.raises(ConfigError, match=r"no profile file .*none\.toml.*quick"):
        profile.load(str(tmp_path / "none.toml"))


class Knobs(StrictSettings):
    """Settings of the fake method ``one``."""

    speeds: list[float]
    epochs: int = Field(default=1, ge=1)
    rate: float = Field(default=0.5, gt=0, lt=1)


WRONG = """
titel = "mine"
title = "mine"
source = "embedded"
datasets = ["ag_news"]
methods = ["one"]
rounds = 0
max_length = "64"
[method.one]
epoch = 2
"""


@pytest.fixture
def knobs(stage: Any) -> None:
    """The fake ``one`` declares a model of its settings."""
    stage.add("one", settings=Knobs)


@pytest.mark.usefixtures("knobs")
def test_all_problems_are_reported_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown key, a number out of range, a wrong type and an unknown setting of a method: one line each, exit code 2."""
    path = write(tmp_path, WRONG)
    assert main(["run", "--profile", path]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, words in zip(
        sorted(lines),
        [
            "[method.one]: unknown key 'epoch': did you mean epochs?",
            'max_length = "64" is not allowed: give an integer of at least 8, without quotes',
            "rounds = 0 is not allowed: give an integer of at least 1",
            "unknown key 'titel': did you mean title?",
        ],
        strict=True,
    ):
        assert line.startswith(f"geep-bench: profile {path}")
        assert words in line


@pytest.mark.usefixtures("knobs")
def test_settings_are_validated_before_anything_runs(tmp_path: Path) -> None:
    """Problems name the table that a setting comes from: of a variant, its base, all methods, or the command line."""
    text = GOOD.replace('["bert"]', '["one", "fast"]\nreference = "one"').replace("learning_rate = 0.1", "warmup = 1")
    text = text.replace(
        "[method.fastbert]\nepochs = 9", '[method.one]\nepochs = 0\n[method.fast]\nlike = "one"\nrate = 3'
    )
    settings = make_settings(write(tmp_path, text), overrides=[("fast", "speed", 1)], device="cpu")
    with pytest.raises(SettingsError) as caught:
        validate_settings(settings)
    place = f"profile {tmp_path / 'mine.toml'}, "
    assert sorted(caught.value.problems) == [
        "--set fast.speed: unknown key 'speed': did you mean speeds? known keys: epochs, rate, speeds",
        place + "[method.fast]: rate = 3 is not allowed: give a number above 0 and below 1",
        place + "[method.one]: epochs = 0 is not allowed: give an integer of at least 1",
        place + "[training]: unknown key 'warmup': known keys: epochs, rate, speeds",
    ]


@pytest.mark.usefixtures("knobs")
def test_unknown_names_and_wrong_settings_are_reported_together(tmp_path: Path) -> None:
    """A misspelt method does not hide a wrong setting of another one."""
    text = GOOD.replace('["bert"]', '["one", "twoo"]\nreference = "one"').replace("[method.fastbert]", "[method.one]")
    with pytest.raises(
        SettingsError, match=r"unknown method 'twoo': did you mean two.*\n.*\[training\].*learning_rate"
    ):
        validate_settings(make_settings(write(tmp_path, text), device="cpu"))


@pytest.mark.usefixtures("stage")
def test_options_are_validated_like_the_profile() -> None:
    """From Python, too, a value that a profile may not have is rejected."""
    with pytest.raises(SettingsError, match="quick with the given options: rounds = 0 .* at least 1"):
        make_settings("quick", rounds=0)
