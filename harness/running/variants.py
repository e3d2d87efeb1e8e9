"""Rows that are no new code: a registered method under a name of its own, with settings of its own.

In a profile::

    [method.distilbert-third]
    like = "distilbert"             # a method or another variant, whose settings it takes over
    layers = 2                      # its own settings win
    needs = {bert = "bert-long"}    # optional: who plays the teacher that distilbert's code calls "bert"

``needs`` may also be a list of names; the method then finds its teachers under these. A variant is resolved by the profile that
holds it; the registry knows nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import registry
from harness.contracts import Fitted, Kind, Method
from harness.core.errors import ConfigError, UnknownNameError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone

RESERVED = ("like", "needs")
# Names go into file names, where "--" separates parts.
NAME = re.compile(r"\w+([-.+]\w+)*")
LONGEST = 64
# Optional capabilities (:mod:`harness.contracts`) that a variant has if its base has them.
INHERITED = ("role", "settings", "point_names", "named_content", "uses_word_head")

Tables = Mapping[str, Mapping[str, Any]]


class _Cast(dict[str, Fitted]):
    """Teachers by role; says in one line who is missing."""

    def __init__(self, variant: Variant, teachers: Mapping[str, Fitted]) -> None:
        super().__init__({role: teachers[name] for role, name in variant.roles.items()})
        self._variant = variant

    def __missing__(self, role: str) -> Fitted:
        method, given = self._variant.base.name, ", ".join(self) or "nobody"
        raise ConfigError(
            f"method '{method}' looks for a teacher '{role}' and is given {given}: write needs = {{{role} = ...}}"
        )


class Variant:
    """A method under another name: fits, loads and names its points as the method does that it is like.

    Attributes:
        base: the registered method.
        roles: what the base calls a teacher -> name of the method or variant that plays it.
        identity: for content keys; no two different variants share one.
    """

    def __init__(self, name: str, base: Method, roles: Mapping[str, str]) -> None:
        self.name, self.base, self.roles = name, base, dict(roles)
        self.kind: Kind = base.kind
        self.version = base.version
        self.needs: tuple[str, ...] = tuple(dict.fromkeys(self.roles.values()))
        self.identity = [name, base.name, sorted(self.roles.items())]
        vars(self).update({part: getattr(base, part) for part in INHERITED if hasattr(base, part)})

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> Fitted:
        """As the base, whose teachers bear the names of their roles."""
        return self.base.fit(task, backbone, _Cast(self, teachers), config=config, seed=seed)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Fitted:
        """What ``save`` wrote."""
        return self.base.load(folder, task, backbone, _Cast(self, teachers))


def is_variant(tables: Tables, name: str) -> bool:
    """Whether the table of that name makes it one."""
    return "like" in tables.get(name, {})


def lineage(tables: Tables, name: str) -> list[str]:
    """``name``, what it is like, what that is like, ..., down to a name that is no variant.

    Raises:
        ConfigError: variants are like each other in a circle, or ``like`` is no name.
    """
    found = [name]
    while is_variant(tables, found[-1]):
        like = tables[found[-1]]["like"]
        if not isinstance(like, str):
            raise ConfigError(f"variant '{found[-1]}': like = {like!r} is not a name: write like = \"...\"")
        if like in found:
            raise ConfigError(f"variants are like each other in a circle: {' -> '.join([*found, like])}")
        found.append(like)
    return found


def settings(tables: Tables, name: str) -> dict[str, Any]:
    """Own settings of a method or variant: those of what it is like, overridden by its own.

    Raises:
        ConfigError: as :func:`lineage`.
    """
    merged: dict[str, Any] = {}
    for one in reversed(lineage(tables, name)):
        table = tables.get(one, {})
        merged |= {key: value for key, value in table.items() if not is_variant(tables, one) or key not in RESERVED}
    return merged


def method_of(tables: Tables, name: str) -> Method:
    """The method or variant called ``name``.

    Raises:
        UnknownNameError: there is none, or it is like, or needs, one that does not exist.
        ConfigError: a variant makes no sense.
        MethodError: its plug-in cannot be imported or lacks a part of the contract.
    """
    if not is_variant(tables, name):
        _refuse_unless_known(tables, "method", name)
        if "needs" in tables.get(name, {}):
            raise ConfigError(
                f"[method.{name}] needs = ...: teachers are chosen for variants only: "
                f'give it another name and add like = "{name}"'
            )
        return registry.get(name)
    family = lineage(tables, name)
    for one in family[:-1]:
        _refuse_bad_name(one)
    for one, like in zip(family, family[1:], strict=False):
        _refuse_unless_known(tables, f"method in like of variant '{one}':", like)
    base = registry.get(family[-1])
    roles = {need: need for need in base.needs}
    for one in reversed(family[:-1]):
        if "needs" in tables[one]:
            roles = _recast(one, roles, tables[one]["needs"])
    for need in roles.values():
        _refuse_unless_known(tables, f"method in needs of variant '{name}':", need)
    return Variant(name, base, roles)


def _refuse_unless_known(tables: Tables, what: str, name: str) -> None:
    if not is_variant(tables, name) and not registry.known(name):
        made = [other for other in tables if is_variant(tables, other)]
        raise UnknownNameError(what, name, [*registry.names(), *made])


def _refuse_bad_name(name: str) -> None:
    if registry.known(name):
        raise ConfigError(f"variant '{name}' has the name of a registered method: choose another one")
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ConfigError(
            f"variant '{name[:LONGEST]}' cannot be called so: use up to {LONGEST} letters, digits and single - . + between them"
        )


def _recast(variant: str, roles: Mapping[str, str], needs: Any) -> dict[str, str]:
    """The roles after one ``needs``: a list replaces all, a mapping changes those that it names."""
    names = needs.values() if isinstance(needs, Mapping) else needs
    if not isinstance(needs, list | tuple | Mapping) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f'variant \'{variant}\': needs = {needs!r} names no methods: write needs = ["..."] or needs = {{role = "..."}}'
        )
    if not isinstance(needs, Mapping):
        return {name: name for name in needs}
    for role in needs:
        if role not in roles:
            raise ConfigError(
                f"variant '{variant}': nobody plays the role '{role}' in needs: its roles are {', '.join(roles) or 'none'}"
            )
    return {**roles, **needs}
