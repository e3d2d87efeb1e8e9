"""Broken plug-ins: their cells fail with a reason, and other methods are measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.cli import main as cli
from harness.contracts import OperatingPoint, Predictions
from harness.core.errors import ConfigError, MethodError, UnknownNameError
from harness.core.tokens import TokenSet
from harness.core.work import Tally, Work
from harness.results.run_folder import RunFolder
from harness.running.grid import Grid
from harness.running.run_settings import Settings, validate_settings
from harness.toolkit.fitted import FullDepth
from reports.build import write_report

Install = Callable[[str], None]


@pytest.fixture
def settings(stage: Any, grid_settings: Settings) -> Settings:
    """``one`` is the reference, ``bad`` precedes ``two``, and there is one dataset and one point."""
    stage.points = ("a",)
    changes = {"datasets": ["ag_news"], "methods": ["one", "bad", "two"]}
    return replace(grid_settings, profile=grid_settings.profile.model_copy(update=changes))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a module as the entry point ``bad``."""

    def act(code: str) -> None:
        (tmp_path / "geep_bad_plugin.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("geep_bad_plugin", None)
        point = EntryPoint("bad", "geep_bad_plugin:Bad", registry.GROUP)
        monkeypatch.setattr(registry, "_entry_points", lambda: {"bad": point})

    yield act
    sys.modules.pop("geep_bad_plugin", None)


def ends(settings: Settings, capsys: pytest.CaptureFixture[str], *words: str, cells: int) -> None:
    """Assert that ``bad`` fails in ``cells`` cells, each reported in one line with ``words``, and that others succeed."""
    outcome = Grid(settings).execute()
    assert (outcome.measured, outcome.failed) == (2, cells)
    printed = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(printed) == cells
    for line in printed:
        assert line.startswith("ag_news bad ") and "Traceback" not in line
        assert all(word in line for word in words), line
    run = RunFolder.open(settings.out)
    assert {result.cell.method for result in run.results()} == {"one", "two"}
    assert all(all(word in record["reason"] for word in words) for record in run.failures())


WHOLE = """
class Bad:
    name, kind, needs, version = "bad", "method", (), 1
    def fit(self, task, backbone, teachers, *, config, seed): ...
    def load(self, folder, task, backbone, teachers): ...
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no licence\\nmore')", ("'geep_bad_plugin:Bad'", "RuntimeError: no licence", "uninstall")),
        ("import a_library_that_is_not_there", ("ModuleNotFoundError",)),
        ("import sys\nsys.exit('bye')", ("SystemExit: bye",)),
        ("class Bad(", ("SyntaxError",)),
        ("x = 1", ("AttributeError",)),
        (WHOLE.replace("def load", "def unload"), ("lacks load", "contracts.py")),
        (WHOLE.replace('"method"', '"metod"'), ("'metod' is not one of method, control, bound",)),
        (WHOLE.replace("()", '("one")', 1), ("needs = 'one' must be a tuple",)),
        (WHOLE.replace("(), 1", "(), 1\n    load = 3").replace("def load", "def unload"), ("must be functions",)),
        (WHOLE.replace('"bad", ', '"good", '), ("with the name 'good'",)),
        (WHOLE, ("a fitted NoneType that lacks operating_points, predict, save, cost",)),
    ],
)
def test_a_plug_in_that_is_not_a_method(
    install: Install, settings: Settings, capsys: pytest.CaptureFixture[str], code: str, words: tuple[str, ...]
) -> None:
    """It cannot be imported or lacks a part of the contract: one failed cell names plug-in, reason and correction."""
    install(code)
    validate_settings(settings)  # the name is known, so the run may start
    ends(settings, capsys, *words, cells=1)


def test_a_repaired_plug_in_is_measured(
    install: Install, stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run measures the missing cells, keeps the others, and removes the failure record."""
    install("raise OSError('no disk')")
    assert Grid(settings).execute().failed == 1
    monkeypatch.setattr(registry, "_entry_points", dict)
    stage.add("bad")
    outcome = Grid(settings).execute()
    assert (outcome.measured, outcome.kept, outcome.failed) == (1, 2, 0)
    assert RunFolder.open(settings.out).failures() == []


def test_a_plug_in_that_breaks_later_keeps_its_results(
    install: Install, stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier results stay, and the failure is reported."""
    stage.add("bad")
    assert Grid(settings).execute().measured == 3
    monkeypatch.delitem(registry._registered, "bad")
    install("raise OSError('no disk')")
    outcome = Grid(settings).execute()
    assert (outcome.measured, outcome.kept, outcome.failed) == (0, 2, 1)
    assert len(RunFolder.open(settings.out).results()) == 3


def test_an_unknown_name_stops_at_once(stage: Any, settings: Settings) -> None:
    """A name that is not registered stops the run before anything starts; the nearest name is suggested."""
    stage.add("bad")
    with pytest.raises(UnknownNameError, match="'bat': did you mean bad"):
        Grid(replace(settings, profile=settings.profile.model_copy(update={"methods": ["bat"]})))
    assert stage.fits == []


def test_dependent_methods_fail_with_it(
    install: Install, stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student's error holds the teacher's reason, and a teacher whose fit failed is not fitted again."""
    tries: list[int] = []

    def fail(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise RuntimeError("out of ideas")

    stage.add("bad", fit=fail)
    stage.add("pupil", "bad")
    more = replace(settings, profile=settings.profile.model_copy(update={"methods": ["one", "bad", "pupil", "two"]}))
    outcome = Grid(more).execute()
    assert (outcome.measured, outcome.failed, len(tries)) == (2, 2, 1)
    assert "ag_news pupil fit: method 'pupil' learns from 'bad', which failed: RuntimeError: out of ideas (see" in (
        capsys.readouterr().err
    )


def test_the_report_lists_missing_rows_with_reasons(stage: Any, settings: Settings) -> None:
    """The page and the Markdown report have the reason at the top, and a footnote in place of the rows."""
    wrongly(stage, **to("work", lambda old: Work()))
    Grid(settings).execute()
    page = write_report(settings.out)
    for text in (page.read_text(encoding="utf-8"), (page.parent / "report.md").read_text(encoding="utf-8")):
        plain = text.replace("\\", "")
        assert "Failed and missing: ag_news / bad / full, seed 0: predict counted no layer" in plain
        assert "Missing from this table: " in plain and "bad full, seed0 (failed)" in plain


def test_a_setting_that_only_the_method_knows_fails_its_own_cells(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method without a model of its settings may refuse one when it is fitted."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigError("method 'bad' has no setting 'x'")

    stage.add("bad", fit=refuse)
    ends(settings, capsys, "method 'bad' has no setting 'x'", cells=1)


def test_a_method_that_cannot_run_here_fails_alone(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it lacks a library or device, its MethodError is reported in one line, without the type."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise MethodError("bad needs a TPU: leave it out")

    stage.add("bad", fit=refuse)
    ends(settings, capsys, "bad needs a TPU: leave it out", cells=1)


class Answering(FullDepth):
    """Give wrong answers of one kind."""

    wrong: Callable[[Predictions], Any] = staticmethod(lambda found: None)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        found = super().predict(tokens, at=at)
        other = type(self).wrong(found)
        return found if other is None else other


def wrongly(stage: Any, **parts: Any) -> None:
    """Register ``bad``, whose fitted method has these parts changed."""
    kind = type("Wrong", (Answering,), parts)
    fake = stage.add("bad")
    vars(fake)["fit"] = lambda task, backbone, teachers, **_: kind(
        type(fake).fit(fake, task, backbone, teachers, config={}, seed=0).model
    )


def to(name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """Change one part of the predictions."""
    return {"wrong": staticmethod(lambda found: setattr(found, name, change(getattr(found, name))))}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"wrong": staticmethod(lambda found: (found.logits, found.exit_layer))},
            ("returned tuple: return Predictions",),
        ),
        (to("logits", lambda old: old[:, 0]), ("logits (12,) for 12 samples", "float32 [N, C]")),
        (to("logits", lambda old: old[:-1]), ("logits (11, 4) for 12 samples",)),
        (to("logits", lambda old: old[:, :3]), ("returned 3 classes, the task has 4",)),
        (to("logits", lambda old: old.astype(np.float64)), ("logits as ndarray of float64", "float32")),
        (to("logits", lambda old: old * np.nan), ("not finite for 12 of 12 samples",)),
        (
            to("logits", lambda old: np.where(np.arange(len(old))[:, None] == 1, np.float32(np.inf), old)),
            ("for 1 of 12",),
        ),
        (to("exit_layer", lambda old: old[1:]), ("exit_layer (11,) for 12 samples",)),
        (to("exit_layer", lambda old: old.astype(np.int64)), ("exit_layer as ndarray of int64", "int16")),
        (to("exit_layer", lambda old: old + np.int16(1)), ("exit_layer from 3 to 3 for a model of 3 layers", "0..2")),
        (to("exit_layer", lambda old: old - np.int16(9)), ("exit_layer from -7",)),
        (
            {"wrong": staticmethod(lambda found: setattr(found, "predicted_exit", np.full_like(found.exit_layer, 5)))},
            ("predicted_exit from 5",),
        ),
        (to("work", lambda old: Work()), ("counted no layer", "work.add(")),
        (
            to("work", lambda old: Work({**old.blocks, "gate.1": Tally(1)})),
            ("kind gate", "cost.blocks has only layer, keys, head"),
        ),
        ({"operating_points": lambda self, dev: []}, ("at least one OperatingPoint",)),
        ({"operating_points": lambda self, dev: ["full"]}, ("['full']", "OperatingPoint(name, params)")),
        ({"operating_points": lambda self, dev: [OperatingPoint("a")] * 2}, ("share a name: ['a', 'a']",)),
        (
            {"operating_points": lambda self, dev: [OperatingPoint("a", {"t": np.ones(2)})]},
            ("'a': params", "plain numbers"),
        ),
        ({"operating_points": lambda self, dev: [OperatingPoint("a", {"t": float("nan")})]}, ("'a': params",)),
        ({"operating_points": lambda self, dev: [OperatingPoint(3)]}, ("named [3]",)),
        ({"save": lambda self, folder: 1 / 0}, ("ZeroDivisionError",)),
        ({"cost": property(lambda self: 1 / 0)}, ("ZeroDivisionError",)),
        ({"predict": lambda self, tokens, *, at: 1 / 0}, ("ZeroDivisionError",)),
    ],
)
def test_a_plug_in_that_answers_wrongly(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str], parts: dict[str, Any], words: tuple[str, ...]
) -> None:
    """Wrong shapes, types, values, layers and work each give an error with the problem and its correction."""
    wrongly(stage, **parts)
    if any("12" in word for word in words):  # a first pass uses few samples only; this one uses all
        execution = settings.profile.execution.model_copy(update={"batch_size": 12})
        settings = replace(settings, profile=settings.profile.model_copy(update={"execution": execution}))
    ends(settings, capsys, *words, cells=1)


def test_failed_cells_give_exit_code_one(
    install: Install, stage: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The exit code is 1 also if only the failed method was requested and there is nothing to report."""
    install("raise RuntimeError('no licence')")
    out = str(tmp_path / "out")
    common = ["run", "--datasets", "ag_news", "--device", "cpu", "--out", out]
    profile = tmp_path / "p.toml"
    profile.write_text(
        'title = "t"\nsource = "embedded"\ndatasets = ["ag_news"]\nmethods = ["one"]\nreference = "one"\n'
        'max_length = 16\nbackbones = {en = "embedded"}\n',
        encoding="utf-8",
    )
    assert cli.main([*common, "--profile", str(profile), "--methods", "bad"]) == 1
    printed = capsys.readouterr()
    assert "no licence" in printed.err and "none measured, 1 failed" in printed.out
    assert cli.main([*common, "--profile", str(profile), "--methods", "bad,one"]) == 1
    assert "2 measured, 0 kept from before, 1 failed" in capsys.readouterr().out


def test_the_list_of_methods_shows_broken_plug_ins(
    install: Install, stage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One broken plug-in does not hide the others."""
    install("raise RuntimeError('no licence')")
    assert cli.main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bad ") and "broken" in line and "no licence" in line for line in lines)
    assert any(line.startswith("one ") for line in lines)


def test_the_list_of_methods_shows_variants(stage: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The list has the variants of a profile with their descriptions."""
    profile = tmp_path / "p.toml"
    profile.write_text(
        'title = "t"\nsource = "embedded"\ndatasets = []\nmethods = []\n[method.one-b]\nlike = "one"\nepochs = 3\n',
        encoding="utf-8",
    )
    assert cli.main(["list", "methods", "--profile", str(profile)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("one-b")]
    assert "variant" in line and 'like = "one", epochs = 3 (profile p)' in line
