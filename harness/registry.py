"""Methods by name: registered with a decorator, or found through the entry-point group ``geep.methods``.

A third-party package registers a method with these lines of its ``pyproject.toml``::

    [project.entry-points."geep.methods"]
    my-method = "my_package:MyMethod"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from harness.contracts import Method
from harness.errors import ConfigError, UnknownNameError

GROUP = "geep.methods"
REQUIRED = ("name", "kind", "needs", "version", "fit", "load")

_registered: dict[str, Method] = {}

M = TypeVar("M", bound=type)


def _checked(name: str, method: object) -> Method:
    missing = [attribute for attribute in REQUIRED if not hasattr(method, attribute)]
    if missing:
        raise ConfigError(
            f"method '{name}' ({type(method).__module__}) lacks {', '.join(missing)}: see harness/contracts.py"
        )
    return method  # type: ignore[return-value]  # checked by name just above


def register(cls: M) -> M:
    """Class decorator: make a method known under its ``name`` in this process.

    Raises:
        ConfigError: another class has that name already.
    """
    method = _checked(getattr(cls, "name", cls.__name__), cls())
    known = _registered.get(method.name)
    if known is not None and type(known).__qualname__ != cls.__qualname__:
        raise ConfigError(
            f"two methods are named '{method.name}': {type(known).__name__} and {cls.__name__}; rename one"
        )
    _registered[method.name] = method
    return cls


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Every known method, sorted."""
    return sorted({*_registered, *_entry_points()})


def get(name: str) -> Method:
    """The method called ``name``.

    Raises:
        UnknownNameError: nobody registered it; the message suggests the nearest names.
        ConfigError: its plug-in cannot be imported or lacks a part of the contract.
    """
    if name in _registered:
        return _registered[name]
    points = _entry_points()
    if name not in points:
        raise UnknownNameError("method", name, names())
    try:
        plugin = points[name].load()()
    except Exception as error:  # a plug-in may raise anything on import; the user needs to know which one
        raise ConfigError(
            f"method '{name}' from '{points[name].value}' cannot be imported ({type(error).__name__}: {error}): "
            "mend or uninstall that plug-in"
        ) from error
    method = _checked(name, plugin)
    if method.name != name:
        raise ConfigError(f"entry point '{name}' gives a method that calls itself '{method.name}': make the two equal")
    _registered[name] = method
    return method


def in_order(wanted: Iterable[str]) -> list[str]:
    """``wanted`` and everything it needs, each after what it needs.

    Raises:
        UnknownNameError: a name is not known.
        ConfigError: methods need each other in a circle.
    """
    done: list[str] = []

    def visit(name: str, path: Sequence[str]) -> None:
        if name in path:
            raise ConfigError(f"methods need each other in a circle: {' -> '.join([*path, name])}")
        if name not in done:
            for need in get(name).needs:
                visit(need, [*path, name])
            done.append(name)

    for name in wanted:
        visit(name, [])
    return done
