"""Weights are trained once for all that is chosen for them, and again for everything that training depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from baselines.distilled.distilbert import DistilBert
from baselines.early_exit.berxit import Berxit
from baselines.early_exit.cascadebert import CascadeBert
from baselines.early_exit.deebert import DeeBert
from baselines.early_exit.elasticbert import ElasticBert
from baselines.early_exit.fastbert import FastBert
from baselines.early_exit.hashee import HashEE
from baselines.early_exit.righttool import RightTool
from baselines.full_depth.bert import Bert
from geep.method import Geep
from harness import registry
from harness.contracts import Fitted, LearnsInStages
from harness.running.content_keys import ContentKeys
from harness.running.fits.fit_pool import FitPool
from harness.running.fits.fit_store import FITS, WEIGHTS
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit.resume import training_state

MADE = (Bert, DistilBert, FastBert, DeeBert, ElasticBert, Berxit, RightTool, CascadeBert, HashEE, Geep)
COMMON = {"speeds": [0.3], "budgets": [0.9]}
# Of every method another value of each of its choices.
CHOICES: dict[str, dict[str, Any]] = {
    "geep": {**COMMON, "rule": "cuts", "ngram": 2, "min_count": 1, "smoothing": 3, "table_rows": "unlabelled"},
    "cascadebert": {**COMMON, "calibrate": True},
    **dict.fromkeys(
        ("bert", "distilbert", "fastbert", "deebert", "elasticbert", "berxit", "righttool", "hashee"), COMMON
    ),
}
FROZEN = {"bert": "a1e5b9e396e69e74", "fastbert": "2d3cd2bd5d4fe632", "geep": "ec4c0db326023d7f"}
Tables = Mapping[str, Mapping[str, Any]]


@pytest.fixture
def trained(stage: Any) -> list[str]:
    """Register methods of this project in place of the fakes; the list has the name of every training."""
    names: list[str] = []
    registry._registered.clear()
    for kind in MADE:
        method = kind()

        def learn(*given: Any, name: str = kind.name, real: Callable[..., Any] = method.learn) -> Any:
            names.append(name)
            return real(*given)

        vars(method)["learn"] = learn
        registry._registered[kind.name] = method
    return names


@pytest.fixture
def session_of(grid_settings: Settings) -> Callable[..., Session]:
    """Return a function that opens a session with tables of methods."""

    def make(method: Tables | None = None, training: Mapping[str, Any] | None = None, **settings: Any) -> Session:
        common = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, **(training or {})}
        changes = {
            "method": method or {},
            "training": common,
            "methods": ["bert"],
            "max_train": 20,
            "reference": "bert",
        }
        changed = replace(grid_settings, profile=grid_settings.profile.model_copy(update=changes), **settings)
        return Session(changed, "ag_news", 0, quiet=True)

    return make


def files(fitted: Fitted, folder: Path) -> dict[str, bytes]:
    """Return all that a fitted method saves but its training report, which holds seconds."""
    folder.mkdir()
    fitted.save(folder)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "training.json"}


def folders(kind: str, cache: Path) -> list[Path]:
    return sorted((cache / "geep-bench-cache" / kind).iterdir())


@pytest.mark.parametrize("name", CHOICES)
def test_other_choices_train_nothing_and_equal_a_fresh_fit(
    name: str, trained: list[str], session_of: Callable[..., Session], tmp_path: Path
) -> None:
    """Each choice by itself and all together, for the method and its teachers; a fresh fit has the same files, bit for bit."""
    method = registry.get(name)
    assert isinstance(method, LearnsInStages) and {*CHOICES[name]} == method.choices
    first = session_of().fit(name)
    assert trained == [*method.needs, name]
    trained.clear()
    for key, value in CHOICES[name].items():
        session_of({name: {key: value}}).fit(name)
    tables = {one: CHOICES[one] for one in (*method.needs, name)}
    chosen = session_of(tables).fit(name)
    assert trained == []
    fresh = session_of(tables, fresh=True).fit(name)
    assert trained == [*method.needs, name]
    found = files(chosen, tmp_path / "chosen")
    assert found == files(fresh, tmp_path / "fresh")
    chooses = name not in ("bert", "distilbert", "hashee")
    assert (found != files(first, tmp_path / "first")) == chooses
    assert len(folders(WEIGHTS, tmp_path)) == len(trained)


def test_a_fit_is_both_stages(
    trained: list[str], session_of: Callable[..., Session], small_backbone: Any, signal_task: Any, tmp_path: Path
) -> None:
    """``fit`` of a method gives what its stages give, and stages leave the weights as they are."""
    method, config = Geep(), {"epochs": 1, "speeds": [0.9]}
    whole = method.fit(signal_task, small_backbone, {}, config=config, seed=1)
    weights = method.train_weights(signal_task, small_backbone, {}, config=config, seed=1)
    before = files(weights, tmp_path / "before")
    chosen = method.choose(weights, signal_task, config=config, seed=1)
    assert files(chosen, tmp_path / "chosen") == files(whole, tmp_path / "whole")
    assert files(weights, tmp_path / "after") == before


def test_a_new_version_chooses_again_and_trains_nothing(
    trained: list[str], session_of: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rule of choice is used on the same weights; another version of the weights trains again."""
    session_of().fit("geep")
    monkeypatch.setattr(registry.get("geep"), "version", 99)
    session_of().fit("geep")
    assert (trained, len(folders(FITS, tmp_path))) == (["geep"], 2)
    monkeypatch.setattr(registry.get("geep"), "weights_version", 99)
    session_of().fit("geep")
    assert (trained, len(folders(FITS, tmp_path))) == (["geep", "geep"], 3)
    cells = ContentKeys(session_of().settings).of("ag_news", "geep")
    monkeypatch.setattr(registry.get("geep"), "weights_version", 100)
    assert ContentKeys(session_of().settings).of("ag_news", "geep") != cells


@pytest.mark.parametrize(
    ("tables", "again"),
    [
        ({"fastbert": {"distill_epochs": 2}}, ["fastbert"]),
        ({"bert": {"epochs": 2}}, ["bert", "fastbert"]),
        ({"fastbert": {"like": "fastbert"}}, []),
        ({"geep": {"holdout": 0.2}, "fastbert": {}}, ["geep"]),
    ],
)
def test_other_training_and_other_teachers_train_again(
    tables: dict[str, dict[str, Any]], again: list[str], trained: list[str], session_of: Callable[..., Session]
) -> None:
    """Weights follow all settings but the choices, and the weights of their teachers."""
    tables = {name: {key: value for key, value in own.items() if key != "like"} for name, own in tables.items()}

    def fit(session: Session) -> None:
        for name in ("bert", "fastbert", "geep"):
            session.fit(name)

    fit(session_of())
    trained.clear()
    fit(session_of(tables))
    assert trained == again


def test_variants_that_differ_in_choices_share_weights(
    trained: list[str], session_of: Callable[..., Session], tmp_path: Path
) -> None:
    """Also under another name, on another engine, or with a teacher of equal weights; not with other roles or training."""
    tables = {
        "bert-again": {"like": "bert", "budgets": [0.2]},
        "fast-two": {"like": "fastbert", "needs": {"bert": "bert-again"}, "speeds": [0.2]},
        "fast-int8": {"like": "fast-two", "engine": "int8"},
        "bert-long": {"like": "bert", "epochs": 2},
        "fast-long": {"like": "fastbert", "needs": {"bert": "bert-long"}},
    }
    session = session_of(tables)
    for name in ("fastbert", "fast-two", "fast-int8"):
        session.fit(name)
    assert trained == ["bert", "fastbert"]
    one, two = session.fit("fastbert"), session.fit("fast-two")
    assert [[point.name for point in fit.operating_points(session.prepared.task.dev)] for fit in (one, two)] == [
        ["speed=0.1", "speed=0.5", "speed=0.8"],
        ["speed=0.2"],
    ]
    assert session.weights_key("fast-int8") == session.weights_key("fastbert")
    session.fit("fast-long")
    assert trained == ["bert", "fastbert", "bert", "fastbert"]


def test_fresh_trains_once_for_all_variants(trained: list[str], session_of: Callable[..., Session]) -> None:
    """``--fresh`` makes stored weights again, but not those that this run has just made."""
    tables = {"geep-two": {"like": "geep", "ngram": 2}}
    session_of(tables).fit("geep-two")
    session = session_of(tables, fresh=True)
    session.fit("geep")
    session.fit("geep-two")
    assert trained == ["geep", "geep"]


@pytest.mark.parametrize("name", ["model.safetensors", "training.json"])
def test_damaged_weights_are_made_again(
    name: str,
    trained: list[str],
    session_of: Callable[..., Session],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A flipped bit is found before anything is chosen for the weights, and one line names the file."""
    first = files(session_of({"elasticbert": COMMON}).fit("elasticbert"), tmp_path / "first")
    (place,) = folders(WEIGHTS, tmp_path)
    path = place / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    session_of().fit("elasticbert")
    assert trained == ["elasticbert", "elasticbert"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{path} does not have its stored checksum: the file is damaged or was changed; fitting again"
    assert files(session_of({"elasticbert": COMMON}).fit("elasticbert"), tmp_path / "again") == first
    assert trained == ["elasticbert", "elasticbert"]


@pytest.mark.parametrize("links", [True, False])
def test_weights_are_stored_once(
    links: bool,
    trained: list[str],
    session_of: Callable[..., Session],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fit shares the files that are those of its weights, and is complete without them; else it has copies."""

    def refused(*_: Any) -> None:
        raise PermissionError("no hard links on this file system")

    if not links:
        monkeypatch.setattr("os.link", refused)
    session_of().fit("geep")
    (weights,), (fit,) = folders(WEIGHTS, tmp_path), folders(FITS, tmp_path)
    shared = {path.name for path in weights.iterdir() if path.samefile(fit / path.name)}
    assert shared == ({"model.safetensors", "model.json", "training.json"} if links else set())
    assert not [path for path in fit.iterdir() if path.suffix == ".link"]
    for path in weights.iterdir():
        path.unlink()
    session_of().fit("geep")
    assert trained == ["geep"]


def test_forgetting_deletes_fit_and_weights(
    trained: list[str], session_of: Callable[..., Session], tmp_path: Path
) -> None:
    """Nothing of the method is left; its teacher stays."""
    session = session_of()
    session.fit("deebert")
    session.forget("deebert")
    assert (len(folders(FITS, tmp_path)), len(folders(WEIGHTS, tmp_path))) == (1, 1)
    assert not session.is_cached("deebert") and session.is_cached("bert")
    session_of().fit("deebert")
    assert trained == ["bert", "deebert", "deebert"]


def test_methods_without_stages_have_no_weights_of_their_own(
    stage: Any, grid_settings: Settings, tmp_path: Path
) -> None:
    """They are fitted for any other setting, and their weights are their fits."""
    for speeds in ([0.1], [0.2]):
        profile = grid_settings.profile.model_copy(update={"speeds": speeds})
        session = Session(replace(grid_settings, profile=profile), "ag_news", 0)
        session.fit("three")
        assert session.weights_key("three") == session.fit_key("three")
    assert stage.fits == ["one ag_news 0", "three ag_news 0"] * 2
    assert not (tmp_path / "geep-bench-cache" / WEIGHTS).exists()


def test_workers_train_equal_weights_once(
    trained: list[str], session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variant that differs in choices waits for the method that trains its weights."""
    asked: dict[str, list[str]] = {}

    def note(pool: FitPool, needs: Any, seconds: Any) -> dict[str, str]:
        asked.update({job.method: [need.method for need in found] for job, found in needs.items()})
        return {}

    monkeypatch.setattr(FitPool, "_carry_out", note)
    monkeypatch.setattr(FitPool, "start", lambda self, workers: None)
    tables = {"geep-two": {"like": "geep", "ngram": 2}, "geep-long": {"like": "geep", "epochs": 2}}
    session = session_of(tables)
    profile = session.settings.profile.model_copy(update={"workers": 2})
    with FitPool(replace(session.settings, profile=profile)) as pool:
        pool.fit(session, ["geep", "geep-two", "geep-long", "fastbert"])
    assert asked == {"geep": [], "geep-two": ["geep"], "geep-long": [], "bert": [], "fastbert": ["bert"]}


def test_a_killed_fit_goes_on_and_leaves_nothing_behind(
    trained: list[str], session_of: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training lies in the cache until the fit is stored; --fresh does not use it."""

    def places() -> list[str]:
        found = (tmp_path / "geep-bench-cache" / "unfinished").rglob("*")
        return [path.name for path in found if path.is_file()]

    def die(state: Any, *given: Any) -> None:
        write(state, *given)
        raise KeyboardInterrupt

    def killed(**settings: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(training_state.TrainingState, "_write", die)
            with pytest.raises(KeyboardInterrupt):
                session_of(training={"epochs": 3}, **settings).fit("bert")

    write = training_state.TrainingState._write
    monkeypatch.setattr(training_state, "EVERY", 0.0)
    monkeypatch.setattr(training_state, "_SHARE", 1e9)
    killed()
    assert places() == ["training-1.safetensors"]
    assert session_of(training={"epochs": 3}).fit("bert").training.steps == 3 * 2  # type: ignore[attr-defined]
    assert places() == []
    killed(fresh=True)
    assert places() == ["training-1.safetensors"]


def test_keys_of_weights_do_not_change(trained: list[str], session_of: Callable[..., Session]) -> None:
    """The frozen keys here keep weights in users' caches valid."""
    session = session_of(training={"precision": "float32"})
    profile = session.settings.profile.model_copy(update={"fit_threads": 1})
    session.settings = replace(session.settings, profile=profile)
    session.__dict__["prepared"] = SimpleNamespace(task=SimpleNamespace(fingerprint="data"), unlabelled_rows="rows")
    session.__dict__["backbone"] = SimpleNamespace(fingerprint="backbone", tokenizer_fingerprint="")
    assert {name: session.weights_key(name) for name in FROZEN} == FROZEN
