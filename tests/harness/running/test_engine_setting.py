"""The setting ``engine``: variants share fits, cells and keys state the engine, and what cannot be is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from harness.contracts import OperatingPoint
from harness.core.errors import ConfigError, MethodError
from harness.encoder.device_kernels.int8_linear import Int8Linear
from harness.engines import choice
from harness.results.run_folder import RunFolder
from harness.running import profile
from harness.running.content_keys import ContentKeys
from harness.running.fits import fit_keys
from harness.running.fits.fit_pool import FitPool
from harness.running.grid import Grid
from harness.running.measuring.disk_use import stored_bytes
from harness.running.run_settings import Settings, make_settings, validate_settings
from harness.running.session import Session

TABLES = {
    "two": {"rate": 0.5},
    "two-int8": {"like": "two", "engine": "int8"},
    "two-eager": {"like": "two-int8", "engine": "eager"},
    "two-long": {"like": "two-int8", "epochs": 9},
}


def having(settings: Settings, method: Mapping[str, Mapping[str, Any]], *names: str, **more: Any) -> Settings:
    """Return settings with these tables that measure these names on one dataset."""
    changes = {"method": method, "methods": list(names), "datasets": ["ag_news"], **more}
    return replace(settings, profile=settings.profile.model_copy(update=changes))


def test_engines_share_one_fit(stage: Any, grid_settings: Settings) -> None:
    """However many engines a method has, it is trained once; other settings make a fit of their own, on the same engine."""
    settings = having(grid_settings, TABLES, "two-int8", "one", "two", "two-eager", "two-long")
    assert Grid(settings).execute().measured == 10
    assert stage.fits == ["two ag_news 0", "one ag_news 0", "two ag_news 0"]
    assert stage.configs["two"] == {"speeds": [0.1, 0.5, 0.8], "rate": 0.5, "epochs": 9}  # an engine is no setting
    results = {result.cell.method: result for result in RunFolder.open(settings.out).results()}
    assert {name: result.cell.engine for name, result in results.items()} == {
        "two-int8": "int8",
        "one": None,
        "two": None,
        "two-eager": "eager",
        "two-long": "int8",
    }
    fits = {name: set(result.binding.fits) for name, result in results.items() if result.binding}
    assert fits["two-int8"] == fits["two"] == fits["two-eager"] == {"two", "one"}
    assert fits["two-long"] == {"two-long", "one"}
    sizes = {name: result.resources.disk_bytes for name, result in results.items() if result.resources}
    assert sizes["two-int8"] < sizes["two"] == sizes["two-eager"]
    again = Grid(settings).execute()
    assert (again.measured, again.kept) == (0, 10)


def test_an_engine_is_also_set_for_a_method_itself(stage: Any, grid_settings: Settings) -> None:
    """``--set two.engine=int8`` uses the cached fit, and measures its cells again, because they follow the engine."""
    settings = having(grid_settings, {}, "one", "two")
    Grid(settings).execute()
    stage.fits.clear()
    changed = make_settings(settings.profile, out=settings.out, device="cpu", overrides=[("two", "engine", "int8")])
    outcome = Grid(changed).execute()
    assert (outcome.measured, outcome.kept, stage.fits) == (2, 2, [])
    found = {(result.cell.method, result.cell.engine) for result in RunFolder.open(settings.out).results()}
    assert found == {("one", None), ("two", "int8")}
    likeness = {result.cell.method: result.checks for result in RunFolder.open(settings.out).results()}
    assert (likeness["one"].engine_agrees, likeness["one"].engine_difference) == (None, None)
    agree, difference = likeness["two"].engine_agrees, likeness["two"].engine_difference
    assert agree is not None and agree > 0.8
    assert (likeness["one"].engine_exits, likeness["two"].engine_exits) == (None, 1.0)
    assert difference is not None and 0 < difference < 0.2


def test_cells_follow_the_engine_of_the_reference(stage: Any, grid_settings: Settings) -> None:
    """Speed-ups refer to the reference on its engine, so another one there changes all cells."""
    Grid(having(grid_settings, {}, "one", "two")).execute()
    assert Grid(having(grid_settings, {"one": {"engine": "int8"}}, "one", "two")).execute().measured == 4


def test_keys_of_fits_do_not_know_engines(stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content of a fit's key is that of a profile without engines; keys of cells differ by engine."""
    monkeypatch.setattr(fit_keys, "content_key", lambda *parts: repr(parts))

    def keys(tables: Mapping[str, Mapping[str, Any]], *names: str) -> list[str]:
        session = Session(having(grid_settings, tables), "ag_news", 0)
        session.__dict__["prepared"] = SimpleNamespace(task=SimpleNamespace(fingerprint="data"))
        session.__dict__["backbone"] = SimpleNamespace(fingerprint="backbone", tokenizer_fingerprint="")
        return [session.fit_key(name) for name in names]

    plain = keys({"two": {"rate": 0.5}, "three": {}}, "two", "three", "two", "two")
    found = keys({**TABLES, "three": {"engine": "int8"}}, "two", "three", "two-int8", "two-eager")
    assert found == plain
    assert "engine" not in repr(plain)
    (long,) = keys(TABLES, "two-long")
    assert keys({**TABLES, "two-long": {**TABLES["two-long"], "engine": "onnx"}}, "two-long") == [long]
    cells = ContentKeys(having(grid_settings, TABLES))
    cells.identity = lambda dataset: "identity"  # type: ignore[assignment]
    assert len({cells.of("ag_news", name) for name in ("two", "two-int8", "two-eager")}) == 3


def test_cells_follow_what_an_engine_computes(
    stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of an engine whose answers or times have changed since are measured again, and no other ones."""

    def keys() -> dict[str, str]:
        cells = ContentKeys(having(grid_settings, TABLES))
        cells.identity = lambda dataset: "identity"  # type: ignore[assignment]
        return {name: cells.of("ag_news", name) for name in ("two", "two-int8", "two-eager")}

    before = keys()
    monkeypatch.setitem(choice.VERSIONS, "int8", 99)
    after = keys()
    assert [name for name, key in before.items() if after[name] != key] == ["two-int8"]


def test_teachers_are_the_float_fits(stage: Any, grid_settings: Settings) -> None:
    """A method learns from the fit of its teacher, whatever the teacher runs on; both run on their own engines."""
    seen: list[Any] = []

    def fit(task: Any, backbone: Any, teachers: Mapping[str, Any], **_: Any) -> Any:
        seen.append(teachers["one"])
        return teachers["one"]

    stage.add("three", "one", fit=fit)
    tables = {"one-int8": {"like": "one", "engine": "int8"}, "four": {"like": "three", "needs": {"one": "one-int8"}}}
    session = Session(having(grid_settings, {**tables, "one": {"engine": "int8"}}), "ag_news", 0)
    assert session.fitted("three") is session.fit("one") is seen[0]
    assert session.fitted("four") is seen[0]
    assert any(isinstance(part, nn.Linear) for part in seen[0].model.modules())
    assert any(isinstance(part, Int8Linear) for part in session.fitted("one").model.modules())  # type: ignore[attr-defined]
    assert stage.fits == ["one ag_news 0"]
    assert stored_bytes(session, "one", "one") < stored_bytes(session, "one", "four")


def test_execution_follows_the_engine(stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contender runs as its engine says, at the points that the float weights were given."""
    monkeypatch.setattr(choice, "can_pack", lambda dtype: True)
    tables = {"two-c": {"like": "two", "engine": "compiled"}, "two-b": {"like": "two", "engine": "bfloat16"}}
    session = Session(having(grid_settings, tables), "ag_news", 0)
    plain, ways = grid_settings.compute, {}
    for name in ("two", "two-c", "two-b"):
        execution = session.contender(name, session.points(name)[0]).point.execution
        ways[name] = (execution.dtype, execution.compute, execution.batch_size)
    assert ways == {
        "two": ("float32", plain, 5),
        "two-c": ("float32", "compiled", 5),
        "two-b": ("bfloat16", plain, 5),
    }
    cell = session.cell("two-b", OperatingPoint("a"), session.fitted("two-b"))
    assert (cell.dtype, cell.engine) == ("float32", "bfloat16")  # the run's, and what replaces it


def test_bfloat16_is_for_cpus_that_have_it(
    stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason names the engine, before anything is trained."""
    monkeypatch.setattr(choice, "can_pack", lambda dtype: dtype != torch.bfloat16)
    session = Session(having(grid_settings, {"two-b": {"like": "two", "engine": "bfloat16"}}), "ag_news", 0)
    with pytest.raises(MethodError, match="two-b: engine 'bfloat16': this CPU has no products of bfloat16"):
        session.fitted("two-b")
    assert not stage.fits


def test_what_a_method_cannot_use_fails_its_cells_before_training(
    stage: Any, grid_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the cells of that variant fail, in one line, and nothing is trained for it."""
    slow = type("SlowFitted", (stage.add("two").fitted,), {"compute": "eager"})
    stage.add("slow", fitted=slow)
    tables = {"slow-c": {"like": "slow", "engine": "compiled"}}
    outcome = Grid(having(grid_settings, tables, "one", "slow-c")).execute()
    assert (outcome.measured, outcome.failed, stage.fits) == (2, 1, ["one ag_news 0"])
    line = "ag_news slow-c fit: slow-c: engine 'compiled' cannot be, since this method always runs its blocks eager"
    assert line in capsys.readouterr().err


def test_an_engine_that_cannot_run_here_fails_its_own_cells(
    stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its library, or on a CPU whose int8 sums are wrong, only the cells of that engine fail, with the reason."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    def inexact() -> None:
        raise MethodError("sums of int8 products are not exact on this CPU: use another engine")

    monkeypatch.setattr(choice, "check_exact", inexact)
    tables = {"two-onnx": {"like": "two", "engine": "onnx"}, "two-int8": {"like": "two", "engine": "int8"}}
    outcome = Grid(having(grid_settings, tables, "one", "two-onnx", "two-int8", "two")).execute()
    assert (outcome.measured, outcome.failed) == (4, 2)
    said = capsys.readouterr().err
    assert "two-onnx: engine 'onnx': it needs " in said and "pip install" in said
    assert "two-int8: engine 'int8': sums of int8 products are not exact on this CPU" in said
    failures = RunFolder.open(grid_settings.out).failures()
    assert {one["cell"]["method"] for one in failures} == {"two-onnx", "two-int8"}


@pytest.mark.parametrize(
    ("name", "like", "engine"),
    [("g", "geep", "onnx"), ("f", "fastbert", "onnx"), ("r", "fastbert-faithful", "compiled")],
)
def test_methods_of_this_project_are_refused_before_their_data_is_read(
    name: str, like: str, engine: str, tmp_path: Path
) -> None:
    """What a method fits is known beforehand."""
    pytest.importorskip("onnxscript")
    chosen = profile.load("quick").model_copy(update={"method": {name: {"like": like, "engine": engine}}})
    session = Session(Settings(chosen, tmp_path), "no such data", 0)
    with pytest.raises(MethodError, match=f"^{name}: engine '{engine}'"):
        session.fitted(name)


def test_workers_fit_once_and_nothing_that_cannot_run(
    stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of one fit are one job, teachers are named by their fits, and a refused engine is no job."""
    asked: dict[str, list[str]] = {}

    def note(pool: FitPool, needs: Any, seconds: Any) -> dict[str, str]:
        asked.update({job.method: [need.method for need in found] for job, found in needs.items()})
        return {}

    monkeypatch.setattr(FitPool, "_carry_out", note)
    monkeypatch.setattr(FitPool, "start", lambda self, workers: None)
    slow = type("SlowFitted", (stage.add("two").fitted,), {"compute": "eager"})
    stage.add("slow", fitted=slow)
    tables = {
        **TABLES,
        "slow-c": {"like": "slow", "engine": "compiled"},
        "four": {"like": "three", "needs": {"one": "two-int8"}},
    }
    names = ("two-int8", "two-eager", "slow-c", "four")
    settings = having(grid_settings, tables, *names, workers=2)
    with FitPool(settings) as pool:
        pool.fit(Session(settings, "ag_news", 0), names)
    assert asked == {"two": [], "four": ["two"]}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"geep": {"engine": "int9"}},
            'profile t, [method.geep]: engine = "int9" is not allowed: give one of "eager", "packed", "compiled", "bfloat16", '
            '"int8", "int8-call", "onnx", "onnx-int8", "openvino", "openvino-int8", "ctranslate2", "ctranslate2-int8"',
        ),
        ({"g": {"like": "geep", "engine": 8}}, "profile t, [method.g]: engine = 8 is not allowed: give one of"),
        ({"training": {"engine": "int8"}}, "profile t, [training]: unknown key 'engine'"),
    ],
)
def test_unknown_engines_are_refused_before_anything_runs(
    overrides: dict[str, dict[str, Any]], words: str, tmp_path: Path
) -> None:
    """The line names the table, the key, and what is allowed."""
    training = overrides.pop("training", {})
    chosen = profile.load("quick").model_copy(update={"method": overrides, "training": training, "name": "t"})
    chosen._origin = "t"
    with pytest.raises(ConfigError) as caught:
        validate_settings(Settings(chosen, tmp_path))
    assert words in str(caught.value)
