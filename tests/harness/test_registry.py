"""Methods by name: entry points, register, needs."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.core.errors import ConfigError, UnknownNameError


@pytest.fixture(autouse=True)
def _only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return an empty registry without plug-ins."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_entry_points", dict)


def method(called: str, *needed: str, **attributes: Any) -> type:
    parts: dict[str, Any] = {
        "name": called,
        "kind": "method",
        "needs": needed,
        "version": 1,
        "fit": lambda self: None,
        "load": lambda self: None,
    }
    return type("Made" + called.title(), (), {k: v for k, v in {**parts, **attributes}.items() if v is not None})


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs a module as the entry point ``third``."""

    def install(code: str, target: str = "geep_test_plugin:Third", name: str = "third") -> None:
        (tmp_path / "geep_test_plugin.py").write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "geep_test_plugin", raising=False)
        point = EntryPoint(name, target, registry.GROUP)
        monkeypatch.setattr(registry, "_entry_points", lambda: {name: point})

    yield install
    sys.modules.pop("geep_test_plugin", None)


THIRD = """
class Third:
    "A third-party method."
    name, kind, needs, version = "third", "method", (), 1
    def fit(self, *args, **options): ...
    def load(self, *args): ...
"""


def test_registered_methods_are_known() -> None:
    """Registering a class makes one instance of it known by name."""
    made = method("mine")
    registry.register(made)
    assert registry.names() == ["mine"]
    assert isinstance(registry.get("mine"), made)
    assert registry.get("mine") is registry.get("mine")


def test_two_methods_of_one_name_are_rejected() -> None:
    """Two classes of one name are rejected by name; the same class twice (a reload) is accepted."""
    registry.register(method("mine"))
    registry.register(method("mine"))
    other = type("Other", (method("mine"),), {})
    with pytest.raises(ConfigError, match="two methods are named 'mine': MadeMine and Other"):
        registry.register(other)


@pytest.mark.parametrize("lacking", registry.REQUIRED[1:])
def test_missing_parts_are_named(lacking: str) -> None:
    """A method that lacks a part of the contract is rejected with the part's name."""
    with pytest.raises(ConfigError, match=rf"'mine'.*lacks {lacking}: see harness/contracts\.py"):
        registry.register(method("mine", **{lacking: None}))


def test_a_plugin_is_found_by_its_entry_point(plugin) -> None:
    """A third-party package is found without being imported first."""
    plugin(THIRD)
    assert registry.names() == ["third"]
    assert type(registry.get("third")).__doc__ == "A third-party method."


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no licence')", r"RuntimeError: no licence"),
        ("import a_library_that_is_not_there", "ModuleNotFoundError"),
        ("class Third(", "SyntaxError"),
        ("x = 1", "AttributeError"),
        (THIRD + "\n    def __init__(self): raise OSError('no disk')", "OSError: no disk"),
        ("Third = 5", "TypeError"),
    ],
)
def test_a_broken_plugin_is_named(plugin, code: str, words: str) -> None:
    """For any error on import, the message has plug-in, reason and correction."""
    plugin(code)
    with pytest.raises(ConfigError, match=rf"'third' from 'geep_test_plugin:Third'.*{words}.*repair or uninstall"):
        registry.get("third")


def test_a_plugin_that_lacks_a_part_is_rejected(plugin) -> None:
    """The contract is checked for plug-ins."""
    plugin(THIRD.replace("def load", "def unload"))
    with pytest.raises(ConfigError, match="lacks load"):
        registry.get("third")


def test_a_plugin_must_match_its_entry_point(plugin) -> None:
    """A plug-in with another name is rejected, because its results would have the wrong name."""
    plugin(THIRD, name="fourth")
    with pytest.raises(ConfigError, match="entry point 'fourth' gives a method with the name 'third'"):
        registry.get("fourth")


def test_unknown_names_suggest_the_nearest() -> None:
    """A misspelt name gets the nearest names and the list of all names."""
    for name in ("fastbert", "distilbert", "tinybert"):
        registry.register(method(name))
    with pytest.raises(UnknownNameError, match=r"unknown method 'fastbrt': did you mean fastbert.*known: distilbert, "):
        registry.get("fastbrt")
    with pytest.raises(UnknownNameError, match="'zzz': known: ") as caught:
        registry.get("zzz")
    assert "did you mean" not in str(caught.value)


def test_needs_come_first_and_once() -> None:
    """Needed methods precede the others, at any depth; otherwise the given order is kept."""
    for name, needs in {"bert": (), "fast": ("bert",), "deep": ("fast", "bert"), "alone": ()}.items():
        registry.register(method(name, *needs))
    assert registry.in_order(["deep", "alone", "fast"]) == ["bert", "fast", "deep", "alone"]
    assert registry.in_order([]) == []


def test_needs_in_a_circle_are_rejected() -> None:
    """The message shows the circle, also for a method that needs itself."""
    for name, needs in {"a": ("b",), "b": ("c",), "c": ("a",), "self": ("self",)}.items():
        registry.register(method(name, *needs))
    with pytest.raises(ConfigError, match="circle: a -> b -> c -> a"):
        registry.in_order(["a"])
    with pytest.raises(ConfigError, match="circle: self -> self"):
        registry.in_order(["self"])


def test_an_unregistered_need_is_unknown() -> None:
    """The message names the need."""
    registry.register(method("a", "missing"))
    with pytest.raises(UnknownNameError, match="'missing'"):
        registry.in_order(["a"])


def test_the_official_methods_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All official methods are found through entry points and follow the contract."""
    monkeypatch.undo()
    names = registry.names()
    assert {"bert", "distilbert", "tinybert", "fastbert", "geep", "geep-verified"} <= set(names)
    assert {registry.get(name).kind for name in names} <= {"method", "control", "bound"}
    assert registry.in_order(["geep-verified"])[-2:] == ["geep", "geep-verified"]
