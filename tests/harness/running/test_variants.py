"""Variants: resolved by the profile, with their own keys, fits and cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from harness import registry
from harness.core.errors import ConfigError, MethodError, UnknownNameError
from harness.core.names import check_method_name
from harness.results.run_folder import RunFolder
from harness.running import profile
from harness.running.content_keys import ContentKeys
from harness.running.grid import Grid
from harness.running.profile import Profile
from harness.running.run_settings import Settings, validate_settings
from harness.running.session import Session

# Keys from before variants existed: fits in users' caches must still be found.
FROZEN = """
title = "frozen"
source = "embedded"
datasets = ["ag_news"]
methods = ["one", "three"]
reference = "one"
speeds = [0.1, 0.5]
max_length = 16
fit_threads = 1
[execution]
compute = "eager"
[training]
epochs = 2
precision = "float32"
[method.three]
layers = 2
"""
KEYS = {
    "one fit": "68d85f4d213dde25",
    "one cell": "4761a7e909022d1e",
    "three fit": "188f637b7ef86015",
    "three cell": "5ec6bbbb2bc873b7",
}


def having(settings: Settings, method: Mapping[str, Mapping[str, Any]], *names: str) -> Settings:
    """Return settings with these tables that measure these names on one dataset."""
    changes = {"method": method, "methods": list(names), "datasets": ["ag_news"]}
    return replace(settings, profile=settings.profile.model_copy(update=changes))


def profile_of(method: Mapping[str, Mapping[str, Any]]) -> Profile:
    return Profile(title="t", source="embedded", datasets=[], methods=[], method=method)


def test_a_variant_has_its_own_row(stage: Any, grid_settings: Settings) -> None:
    """A variant is fitted with its settings; its cells, key and cached fit are separate from those of its base."""
    tables = {"two": {"layers": 4, "rate": 0.5}, "two-third": {"like": "two", "layers": 2}}
    settings = having(grid_settings, tables, "one", "two", "two-third")
    assert Grid(settings).execute().measured == 6
    results = RunFolder.open(settings.out).results()
    assert {result.cell.method for result in results} == {"one", "two", "two-third"}
    assert stage.configs["two"] == {"speeds": [0.1, 0.5, 0.8], "layers": 2, "rate": 0.5}  # the last fit
    assert len(stage.fits) == 3
    again = Grid(settings).execute()
    assert (again.measured, again.kept) == (0, 6)
    asked = json.loads((settings.out / "run.json").read_text())
    assert asked["profile"]["method"]["two-third"] == {"like": "two", "layers": 2}
    changed = having(settings, {**tables, "two-third": {"like": "two", "layers": 1}}, "one", "two", "two-third")
    found = Grid(changed).execute()
    assert (found.measured, found.kept) == (2, 4)


def test_variants_inherit_kind_and_role(stage: Any, grid_settings: Settings) -> None:
    """A variant of a control is a control with the same role; results of methods without a role have none."""
    stage.add("dice", kind="control", role="random-exits")
    settings = having(grid_settings, {"dice-2": {"like": "dice"}}, "one", "dice-2")
    Grid(settings).execute()
    assert {(r.cell.method, r.kind, r.role) for r in RunFolder.open(settings.out).results()} == {
        ("one", "method", None),
        ("dice-2", "control", "random-exits"),
    }


def test_other_methods_may_be_its_teachers(stage: Any, grid_settings: Settings) -> None:
    """A mapping changes the method behind a role; a list passes the teachers under their own names."""
    stage.add("any", "one", any_teachers=True)
    tables = {
        "one-long": {"like": "one", "epochs": 9},
        "three-long": {"like": "three", "needs": {"one": "two"}},
        "any-two": {"like": "any", "needs": ["two", "one-long"]},
        "any-none": {"like": "any", "needs": []},
    }
    settings = having(grid_settings, tables, "three-long", "any-two", "any-none")
    assert settings.profile.in_order(["three-long", "any-two"]) == ["two", "three-long", "one-long", "any-two"]
    assert Grid(settings).execute().failed == 0
    # By role, the method that was fitted; methods without teachers are left out.
    assert [teachers for teachers in stage.taught if teachers] == [{"one": "two"}, {"two": "two", "one-long": "one"}]
    assert stage.configs["one"]["epochs"] == 9


def test_an_unfilled_role_is_reported(stage: Any, grid_settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Code that looks up a missing teacher fails with one line that names the variant and the correction."""
    stage.add("three", "one", fit=lambda task, backbone, teachers, **_: teachers["one"])
    settings = having(grid_settings, {"odd": {"like": "three", "needs": ["two"]}}, "odd")
    assert Grid(settings).execute().failed == len(settings.profile.datasets)
    told = capsys.readouterr().err
    assert re.search(r"variant 'odd': method 'three' looks for a teacher 'one' and has two: .*one = ", told)


def test_settings_are_inherited_along_the_line() -> None:
    """A variant of a variant has the settings of both, the nearest first; reserved words are not settings."""
    tables = {
        "bert": {"epochs": 1, "layers": 9, "rate": 3},
        "long": {"like": "bert", "epochs": 5, "needs": []},
        "longer": {"like": "long", "epochs": 7, "layers": 8},
    }
    found = profile_of(tables)
    assert found.config("longer") == {"speeds": found.speeds, "epochs": 7, "layers": 8, "rate": 3}
    assert found.config("long") == {"speeds": found.speeds, "epochs": 5, "layers": 9, "rate": 3}
    assert found.config("bert") == {"speeds": found.speeds, "epochs": 1, "layers": 9, "rate": 3}
    assert found.method_of("longer").version == registry.get("bert").version
    assert found.variants == ["long", "longer"]


def test_roles_are_inherited_along_the_line() -> None:
    """Roles that a variant changes stay changed in its own variants, unless those change them again."""
    tables = {
        "bert-2": {"like": "bert"},
        "d-2": {"like": "distilbert", "needs": {"bert": "bert-2"}},
        "d-3": {"like": "d-2", "layers": 2},
        "d-4": {"like": "d-2", "needs": {"bert": "tinybert"}},
    }
    found = profile_of(tables)
    assert [found.method_of(name).needs for name in ("d-2", "d-3", "d-4")] == [("bert-2",), ("bert-2",), ("tinybert",)]
    assert registry.get("distilbert").needs == ("bert",)  # the registry is unchanged
    assert "d-2" not in registry.names()


@pytest.mark.parametrize(
    ("tables", "error", "words"),
    [
        ({"x": {"like": "distilbrt"}}, UnknownNameError, r"like of variant 'x'.*'distilbrt': did you mean distilbert"),
        ({"x": {"like": 3}}, ConfigError, r"variant 'x': like = 3 must be a string"),
        ({"bert": {"like": "distilbert"}}, ConfigError, "'bert' has the name of a registered method"),
        ({"x": {"like": "x"}}, ConfigError, "circle: x -> x"),
        ({"x": {"like": "y"}, "y": {"like": "x"}}, ConfigError, "circle: x -> y -> x"),
        ({"x": {"like": "distilbert", "needs": ["x"]}}, ConfigError, "circle: x -> x"),
        (
            {"x": {"like": "distilbert", "needs": ["brt"]}},
            UnknownNameError,
            r"needs of variant 'x'.*'brt': did you mean bert",
        ),
        ({"x": {"like": "distilbert", "needs": {"bert": "brt"}}}, UnknownNameError, r"needs of variant 'x'.*'brt'"),
        (
            {"x": {"like": "distilbert", "needs": {"fastbert": "bert"}}},
            ConfigError,
            "role 'fastbert'.*its roles are bert",
        ),
        ({"x": {"like": "bert", "needs": {"bert": "bert"}}}, ConfigError, "role 'bert'.*its roles are none"),
        ({"x": {"like": "distilbert", "needs": "bert"}}, ConfigError, "variant 'x': needs = 'bert' must name methods"),
        ({"x": {"like": "distilbert", "needs": [3]}}, ConfigError, "variant 'x': needs"),
        ({"distilbert": {"needs": ["tinybert"]}}, ConfigError, 'only variants .*like = "distilbert"'),
        ({"../x": {"like": "bert"}}, ConfigError, r"'\.\./x': this name is not allowed"),
        ({"a--b": {"like": "bert"}}, ConfigError, "'a--b': this name is not allowed"),
        ({"": {"like": "bert"}}, ConfigError, "'': this name is not allowed"),
        ({"x" * 101: {"like": "bert"}}, ConfigError, "101 bytes: use at most 100"),
        ({"brt": {"layers": 2}}, UnknownNameError, "did you mean bert"),
    ],
)
def test_invalid_variants_are_rejected_before_anything_is_fitted(
    tmp_path: Path, tables: dict[str, dict[str, Any]], error: type, words: str
) -> None:
    """One line names the variant, the problem and the correction, even if the variant is not run."""
    chosen = profile.load("quick").model_copy(update={"method": tables, "methods": ["bert"]})
    with pytest.raises(error, match=words) as caught:
        validate_settings(Settings(chosen, tmp_path))
    assert "\n" not in str(caught.value)


def test_unknown_names_suggest_variants() -> None:
    """A misspelt name of a variant gets the variant as a suggestion."""
    with pytest.raises(UnknownNameError, match="did you mean bert-long"):
        profile_of({"bert-long": {"like": "bert"}}).method_of("bert-lonk")


def keys(settings: Settings, *names: str) -> dict[str, str]:
    """Return keys of fits and cells for fabricated data and backbone."""
    session, cells = Session(settings, "ag_news", 0), ContentKeys(settings)
    session.__dict__["prepared"] = SimpleNamespace(task=SimpleNamespace(fingerprint="data"))
    session.__dict__["backbone"] = SimpleNamespace(fingerprint="backbone", tokenizer_fingerprint="")
    cells.identity = lambda dataset: "identity"
    found = {f"{name} fit": session.fit_key(name) for name in names}
    return {**found, **{f"{name} cell": cells.of("ag_news", name) for name in names}}


def test_keys_of_methods_do_not_change(stage: Any, tmp_path: Path) -> None:
    """The frozen keys here keep fits and cells of embedded data valid."""
    path = tmp_path / "frozen.toml"
    path.write_text(FROZEN)
    settings = Settings(profile.load(str(path)), tmp_path / "run")
    found = keys(settings, "one", "three")
    assert found == KEYS
    more = {**settings.profile.method, "one-b": {"like": "one"}}
    assert keys(having(settings, more, "one", "three", "one-b"), "one", "three") == found


@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "like": st.just("two"),
            "epochs": st.integers(1, 3),
            "needs": st.sampled_from([["two"], ["one", "two"], {"one": "two"}]),
        },
    )
)
@examples(max_examples=30)
def test_variants_that_differ_have_keys_that_differ(changes: dict[str, Any]) -> None:
    """Name, base, roles and settings are all part of the keys."""
    registered = {"one": (), "two": ("one",), "three": ("one",)}
    fakes = {
        name: SimpleNamespace(name=name, kind="method", needs=needs, version=1, fit=None, load=None)
        for name, needs in registered.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", fakes)
        patch.setattr(registry, "_entry_points", dict)
        plain, other = (profile_of({"v": {"like": "three", **more}}) for more in ({}, changes))
        same = (plain.identity("v"), plain.config("v")) == (other.identity("v"), other.config("v"))
        assert same == (not changes)
        assert profile_of({"w": {"like": "three", **changes}}).identity("w") != other.identity("v")


@given(st.text(max_size=70))
@examples(max_examples=200)
def test_a_name_that_is_accepted_is_safe_in_file_names(name: str) -> None:
    """It has no separators of folders or of file-name parts, is not hidden and not too long."""
    with suppress(ValueError):
        assert not re.search(r"[/\\\s:]|--|^\.|\.\.|^-", check_method_name(name))
        assert 0 < len(name.encode()) <= 100


def test_a_variant_of_a_broken_plug_in_fails_alone(
    stage: Any, grid_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells fail with the variant's name; other methods are measured."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise MethodError("two needs a licence: buy one")

    stage.add("two", fit=refuse)
    settings = having(grid_settings, {"two-b": {"like": "two"}}, "one", "two-b")
    outcome = Grid(settings).execute()
    assert (outcome.measured, outcome.failed) == (2, 1)
    assert "ag_news two-b fit: variant 'two-b': two needs a licence: buy one" in capsys.readouterr().err


def test_a_seed_offset_makes_a_teacher_of_another_seed(stage: Any, grid_settings: Settings) -> None:
    """Fits have the sum of both seeds, keys of their own, and no such setting; without an offset, keys stay as they were."""
    tables = {"two-b": {"like": "two", "seed_offset": 100}, "two-c": {"like": "two-b", "layers": 2}}
    settings = having(grid_settings, tables, "one", "two", "two-b", "two-c")
    found = settings.profile
    assert [found.seed_offset(name) for name in ("two", "two-b", "two-c")] == [0, 100, 100]
    assert "seed_offset" not in found.config("two-c") and found.fit_of("two-b") == "two-b"
    session = Session(settings, "ag_news", 0)
    plain = Session(having(grid_settings, {"two-b": {"like": "two"}}, "two-b"), "ag_news", 0)
    assert session.fit_key("two-b") != plain.fit_key("two-b")
    assert session.keys.seed_of("two-b") == 100 and session.keys.seed_of("two") == 0
    cells = [ContentKeys(each).of("ag_news", "two-b") for each in (settings, plain.settings)]
    assert cells[0] != cells[1]
    session.fit("two-b")
    assert stage.fits == ["two ag_news 100"]
    wrong = having(grid_settings, {"two-b": {"like": "two", "seed_offset": -1}}, "two-b").profile.problems(["two-b"])
    assert len(wrong) == 1 and "seed_offset" in wrong[0]
