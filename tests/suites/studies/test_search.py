"""The search for training settings: as many trials for every method, scored on dev, and resumable."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.core.errors import ResultError, SettingsError
from harness.results.search_record import Trial, read_search, winner
from harness.running import profile as profiles
from suites.studies import search

TRIALS = [{"learning_rate": 1e-9, "epochs": 1}, {"learning_rate": 3e-3, "epochs": 2}]
OWN = [{"distill_learning_rate": 1e-9}, {"distill_learning_rate": 3e-3}]


def searching(mini_options: list[str], folder: Path) -> list[str]:
    """Write a profile of a search with two trials on one small dataset, and return its options."""
    own = ", ".join(f"{{distill_learning_rate = {one['distill_learning_rate']}}}" for one in OWN)
    tries = ", ".join(f"{{learning_rate = {one['learning_rate']}, epochs = {one['epochs']}}}" for one in TRIALS)
    text = (
        'title = "a search"\nsource = "local"\ndatasets = ["toy"]\nmethods = ["bert", "fastbert"]\n'
        f'[search]\ndatasets = ["toy"]\ntrials = [{tries}]\n[search.own]\nfastbert = [{own}]\n'
        "[training]\nbatch_size = 8\nhead_rate = 10\n[method.fastbert]\ndistill_epochs = 1\n"
    )
    (folder / "searching.toml").write_text(text, encoding="utf-8")
    place = mini_options.index("mini")
    return [*mini_options[:place], str(folder / "searching.toml"), *mini_options[place + 1 :]]


@pytest.fixture
def options(mini_options: list[str], tmp_path: Path) -> list[str]:
    """Options of a search with two trials on one small dataset."""
    return searching(mini_options, tmp_path)


@dataclass
class Searched:
    """A whole search.

    Attributes:
        tries: method, and the settings of bert at that time.
    """

    file: Path
    out: str
    tries: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def searched(write_mini_options: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Search once, with the student named first."""
    folder, out, real = tmp_path_factory.mktemp("search"), io.StringIO(), search.try_once
    made = Searched(folder / "found.json", "", [])

    def spy(session: Any, method: str, changes: dict[str, Any]) -> Trial | None:
        made.tries.append((method, session.settings.profile.config("bert")))
        return real(session, method, changes)

    options = searching(write_mini_options(folder), folder)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("GEEP_BENCH_CACHE", str(folder / "cache"))
        patch.setattr(search, "try_once", spy)
        assert search.main([*options, "--methods", "fastbert,bert", "--out", str(made.file)]) == 0
    made.out = out.getvalue()
    return made


def test_every_method_gets_as_many_trials(searched: Searched) -> None:
    """Every method has one line and one stored trial per setting; the winner has the best score and is among the trials."""
    record = read_search(searched.file)
    assert [trial.settings for trial in record.of("bert")] == TRIALS
    assert [trial.settings for trial in record.of("fastbert")] == OWN
    for method, chosen in record.best.items():
        scores = {json.dumps(trial.settings): trial.score for trial in record.of(method) if not trial.failed}
        assert scores[json.dumps(chosen)] == max(score for score in scores.values() if score is not None)
        assert all(trial.dev_rows == 10 and trial.steps > 0 for trial in record.of(method))
    lines = searched.out.splitlines()
    assert len(lines) == 4 + 2 + 1
    assert lines[-1].endswith(f"geep-bench run --tuned {searched.file}")


def test_a_stopped_search_resumes(
    searched: Searched, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is not fitted again, and the results are those of a search that was not stopped."""
    file = tmp_path / "found.json"
    real, made = search.try_once, []

    def stops(*arguments: Any) -> Trial | None:
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(search, "try_once", stops)
    assert search.main([*options, "--out", str(file)]) == 130
    with pytest.raises(ResultError, match="has not ended"):
        read_search(file)
    assert search.main([*options, "--out", str(file)]) == 0
    assert len(made) == 5  # 4 trials, one of them begun twice
    drop = {"seconds"}
    places = (searched.file, file)
    one, other = ([trial.model_dump(exclude=drop) for trial in read_search(place).trials] for place in places)
    assert one == other


def test_a_student_learns_from_the_winner(searched: Searched) -> None:
    """Methods are searched after those that they learn from, and with their winning settings."""
    best = read_search(searched.file).best["bert"]
    assert [method for method, _ in searched.tries] == ["bert", "bert", "fastbert", "fastbert"]
    for _, config in searched.tries[2:]:
        assert {key: config[key] for key in best} == best


def test_test_labels_have_no_effect(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores do not depend on test labels."""
    found = []
    for name in ("one.json", "two.json"):
        assert search.main([*options, "--methods", "bert", "--out", str(tmp_path / name)]) == 0
        found.append([trial.score for trial in read_search(tmp_path / name).trials])
        path = tmp_path / "data" / "toy" / "test.csv"
        frame = pd.read_csv(path)
        frame["label"] = 1 - frame["label"]
        frame.to_csv(path, index=False)
    assert found[0] == found[1]
    capsys.readouterr()


def test_a_run_trains_with_the_winners(searched: Searched, options: list[str]) -> None:
    """``--tuned`` puts the winners among the settings, and ``--set`` replaces them."""
    from harness.cli.main import parser, settings_of

    file = searched.file
    best = read_search(file).best
    settings = settings_of(parser().parse_args(["run", *options, "--tuned", str(file)]))
    for method in ("bert", "fastbert"):
        config = settings.profile.config(method)
        assert {key: config[key] for key in best[method]} == best[method]
    changed = settings_of(parser().parse_args(["run", *options, "--tuned", str(file), "--set", "bert.epochs=7"]))
    assert changed.profile.config("bert")["epochs"] == 7


def test_variants_have_the_trials_of_what_they_are_like() -> None:
    """Otherwise a variant would be searched over settings that its training does not use: four times the same fit."""
    profile = profiles.load("rivals")
    assert profile.search is not None
    assert search.trials_of(profile, "fastbert-paper") == profile.search.own["fastbert"] != profile.search.trials
    assert search.trials_of(profile, "elasticbert-linear") == profile.search.trials


def test_what_trains_nothing_is_left_out(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Borrowed weights and another engine have no trials, and do not end the search of the others."""
    file = tmp_path / "found.json"
    more = ["--set", "bert-8.like=bert", "--set", "bert-8.engine=int8", "--methods", "bert,bert-8,control-random"]
    more += ["--set", "geep.epochs=1"]
    assert search.main([*options, *more, "--out", str(file)]) == 0
    assert set(read_search(file).best) == {"bert"}
    out = capsys.readouterr().out
    assert "bert-8 trains no model of its own: left out" in out
    assert "control-random trains no model of its own: left out" in out


def test_other_data_is_another_search(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stored trials of other rows are not taken over: the file is refused."""
    file = ["--methods", "bert", "--out", str(tmp_path / "found.json")]
    assert search.main([*options, *file]) == 0
    path = tmp_path / "data" / "toy" / "train.csv"
    pd.read_csv(path).iloc[:-2].to_csv(path, index=False)
    assert search.main([*options, *file]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def trial(score: float | None, settings: dict[str, Any], dataset: str = "a", failed: str = "") -> Trial:
    return Trial(dataset=dataset, seed=0, method="m", settings=settings, dev_rows=10, score=score, failed=failed)


def test_the_winner_is_the_best_on_average() -> None:
    """The highest mean over datasets wins, the first of equals; settings that failed anywhere cannot win."""
    one, two, three = {"lr": 1}, {"lr": 2}, {"lr": 3}
    trials = [trial(0.5, one), trial(0.5, two), trial(0.7, one, "b"), trial(0.7, two, "b")]
    assert winner(trials) == one
    assert winner([*trials, trial(0.9, three), trial(None, three, "b", "not finite")]) == one
    assert winner([trial(0.9, three, failed="no better than chance")]) is None


def test_the_winner_does_not_depend_on_what_was_stored() -> None:
    """Settings that a stored trial names in another order are the same, so a dataset with high scores favours none of them."""
    one, two = {"lr": 1, "epochs": 2}, {"lr": 2, "epochs": 2}
    stored = [
        trial(0.6, {"epochs": 2, "lr": 1}),
        trial(0.5, {"epochs": 2, "lr": 2}),
        trial(0.8, {"epochs": 2, "lr": 1}, "b"),
    ]
    assert winner([*stored, trial(0.8, two, "b")]) == one
    assert winner([*stored, trial(0.95, two, "b")]) == two
    assert winner([*stored, trial(0.9, {"lr": 3, "epochs": 2}, "b")]) == one, "a trial on one dataset only"


def test_bad_input_is_one_line(
    options: list[str], mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No search in the profile, a method without training, and training that never converges: one line and exit code 2."""
    out = ["--out", str(tmp_path / "found.json")]

    def refused(*arguments: str) -> str:
        assert search.main([*arguments, *out]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "has no table [search]" in refused(*mini_options)
    assert "none trains a model of its own" in refused(*options, "--methods", "control-constant")
    shutil.copytree(tmp_path / "data" / "toy", tmp_path / "data" / "other")
    place = options.index("toy")
    assert "names the datasets of a search" in refused(*options[:place], "other", *options[place + 1 :])
    assert "learning_rate" in refused(*options, "--methods", "bert", "--set", "bert.learning_rat=1")
    text = (tmp_path / "searching.toml").read_text(encoding="utf-8")
    (tmp_path / "searching.toml").write_text(text.replace("1e-09", "1e30").replace("0.003", "1e30"), encoding="utf-8")
    message = refused(*options, "--methods", "bert")
    assert message.startswith("search: no trial of 'bert' converged on all datasets (")
    assert "not finite" in message


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"datasets": ["toy"], "trials": [{}], "own": {"fastbert": [{}, {}]}}, "'fastbert' has 2 trials"),
        ({"datasets": ["a", "b"], "trials": [{}] * 7}, "14 fits per method, and at most 12 are allowed"),
    ],
)
def test_unequal_searches_are_refused(table: dict[str, Any], words: str) -> None:
    """Every method must have the same number of trials, and at most 12 fits."""
    data = {"title": "t", "source": "local", "datasets": ["toy"], "methods": ["bert"], "search": table}
    with pytest.raises(SettingsError, match=words):
        profiles.validated(data, "p")


def test_what_is_no_search_is_refused(tmp_path: Path, save_search: Callable[[Path], None]) -> None:
    """A missing file, another JSON file and a damaged search are refused with the file's name."""
    place = tmp_path / "s.json"
    with pytest.raises(ResultError, match="cannot read the search"):
        read_search(place)
    place.write_text('{"suite": "orders"}', encoding="utf-8")
    with pytest.raises(ResultError, match="is no search"):
        read_search(place)
    save_search(place)
    assert read_search(place).best == {"bert": {"epochs": 2}}
    place.write_text(place.read_text(encoding="utf-8").replace('"score"', '"points"'), encoding="utf-8")
    with pytest.raises(ResultError, match="damaged"):
        read_search(place)


@pytest.fixture
def save_search() -> Callable[[Path], None]:
    """Return a function that writes a finished search."""

    def save(place: Path) -> None:
        facts = {"dataset": "a", "seed": 0, "method": "bert", "settings": {"epochs": 2}, "dev_rows": 5, "score": 0.5}
        record = {
            "suite": "search",
            "complete": True,
            "datasets": ["a"],
            "trials": [facts],
            "best": {"bert": {"epochs": 2}},
        }
        place.write_text(json.dumps(record), encoding="utf-8")

    return save
