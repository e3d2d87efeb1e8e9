"""Finds methods by name, through the entry-point group ``geep.methods``.

A package registers a method with these lines of its ``pyproject.toml``::

    [project.entry-points."geep.methods"]
    my-method = "my_package:MyMethod"

Notebooks and tests call :func:`register` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import get_args

from harness.contracts import Kind, Method
from harness.core.errors import ConfigError, MethodError, UnknownNameError, format_error
from harness.core.names import check_method_name

GROUP = "geep.methods"
REQUIRED = ("name", "kind", "needs", "version", "fit", "load")

_registered: dict[str, Method] = {}


def _checked(name: str, method: object) -> Method:
    whose = f"method '{name}' ({type(method).__module__})"
    missing = [attribute for attribute in REQUIRED if not hasattr(method, attribute)]
    if missing:
        raise MethodError(f"{whose} lacks {', '.join(missing)}: see harness/contracts.py")
    found: Method = method  # type: ignore[assignment]  # checked by name just above
    try:
        check_method_name(found.name)
    except (TypeError, ValueError) as error:
        raise MethodError(f"{whose}: name = {found.name!r} is not allowed: {error}") from error
    if found.kind not in get_args(Kind):
        raise MethodError(f"{whose}: kind = {found.kind!r} is not one of {', '.join(get_args(Kind))}")
    # A string would be taken for the names of its letters.
    if not isinstance(found.needs, tuple | list) or not all(isinstance(need, str) for need in found.needs):
        raise MethodError(f'{whose}: needs = {found.needs!r} must be a tuple of names: write needs = ("bert",) or ()')
    if not callable(found.fit) or not callable(found.load):
        raise MethodError(f"{whose}: fit and load must be functions: see harness/contracts.py")
    return found


def register(method_class: Callable[[], Method]) -> None:
    """Make a method known under its ``name`` in this process only, e.g. in a notebook or a test.

    Packages use the entry point instead (see above), which also works in worker processes and on other machines.

    Raises:
        ConfigError: another class has this name already.
        MethodError: the class lacks a part of the contract.

    Example:
        >>> registry.register(MyMethod)  # doctest: +SKIP
    """
    made = method_class()
    method = _checked(getattr(made, "name", type(made).__name__), made)
    known = _registered.get(method.name)
    if known is not None and type(known).__qualname__ != type(method).__qualname__:
        raise ConfigError(
            f"two methods are named '{method.name}': {type(known).__name__} and {type(method).__name__}; rename one"
        )
    _registered[method.name] = method


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted({*_registered, *_entry_points()})


def known(name: str) -> bool:
    """Return whether a method of that name is registered; it may be a plug-in that cannot be imported."""
    return name in _registered or name in _entry_points()


def get(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        UnknownNameError: it is not registered; the message suggests the nearest names.
        MethodError: its plug-in cannot be imported or lacks a part of the contract.
    """
    if name in _registered:
        return _registered[name]
    points = _entry_points()
    if name not in points:
        raise UnknownNameError("method", name, names())
    try:
        plugin = points[name].load()()
    # A plug-in may raise anything on import, or even exit; the message must name the plug-in.
    except (Exception, SystemExit) as error:
        raise MethodError(
            f"method '{name}' from '{points[name].value}' cannot be imported ({format_error(error)}): "
            "repair or uninstall this plug-in"
        ) from error
    method = _checked(name, plugin)
    if method.name != name:
        raise MethodError(
            f"entry point '{name}' gives a method with the name '{method.name}': make the two names equal"
        )
    _registered[name] = method
    return method


def in_order(wanted: Iterable[str], find: Callable[[str], Method] = get) -> list[str]:
    """Return ``wanted`` and all methods they need, each after those that it needs.

    Args:
        find: returns the method of a name; that of a profile also knows variants.

    Raises:
        UnknownNameError: a name is unknown.
        ConfigError: methods need each other in a circle.
    """
    done: list[str] = []

    def visit(name: str, path: Sequence[str]) -> None:
        if name in path:
            raise ConfigError(f"methods need each other in a circle: {' -> '.join([*path, name])}")
        if name not in done:
            for need in find(name).needs:
                visit(need, [*path, name])
            done.append(name)

    for name in wanted:
        visit(name, [])
    return done
