"""Variants: a registered method under another name, with other settings. They need no code.

In a profile::

    [method.distilbert-third]
    like = "distilbert"             # a method or another variant; its settings are inherited
    layers = 2                      # overrides the inherited setting
    needs = {bert = "bert-long"}    # optional: the method to use as the teacher that distilbert's code calls "bert"

``needs`` may also be a list of names; the method then finds its teachers under these names. Variants belong to their profile;
the registry does not know them.

``seed_offset`` is added to the run's seeds when the variant is fitted, so that a method may learn from several teachers that
differ in their seeds only::

    [method.bert-b]
    like = "bert"
    seed_offset = 100

A variant that only sets an ``engine`` (:mod:`harness.engines`) or an ``executor`` runs the fit of the method that it is like.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import registry
from harness.contracts import Fitted, Kind, LearnsInStages, Method
from harness.core.errors import ConfigError, UnknownNameError
from harness.core.names import check_method_name
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone

RESERVED = ("like", "needs")
# How, and with which seeds, a fit runs: keys of the run, not settings of the method.
RUN_SETTINGS = ("engine", "executor", "seeds")
SEED_OFFSET = "seed_offset"  # changes the seed of the fit: no setting of the method either
# Optional capabilities (:mod:`harness.contracts`) that a variant has if its base has them.
INHERITED = (
    "role",
    "settings",
    "fitted",
    "point_names",
    "named_content",
    "uses_word_head",
    "uses_unlabelled",
    "choices",
    "weights_version",
    "choose",
)

Tables = Mapping[str, Mapping[str, Any]]


class _Teachers(dict[str, Fitted]):
    """Fitted teachers by role; a missing role raises an error that says how to fill it."""

    def __init__(self, variant: Variant, teachers: Mapping[str, Fitted]) -> None:
        super().__init__({role: teachers[name] for role, name in variant.roles.items()})
        self._variant = variant

    def __missing__(self, role: str) -> Fitted:
        method, given = self._variant.base.name, ", ".join(self) or "none"
        raise ConfigError(
            f"method '{method}' looks for a teacher '{role}' and has {given}: write needs = {{{role} = ...}}"
        )


class Variant:
    """A method under another name, with all capabilities of its base.

    Attributes:
        base: the registered method.
        roles: the base's name of a teacher -> the method or variant that is used for it.
        identity: for content keys; different variants have different ones.
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
        """Fit the base; teachers are passed by role."""
        return self.base.fit(task, backbone, _Teachers(self, teachers), config=config, seed=seed)

    def train_weights(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> Fitted:
        """Train the base's weights, if it learns in stages; teachers are passed by role."""
        assert isinstance(self.base, LearnsInStages)
        return self.base.train_weights(task, backbone, _Teachers(self, teachers), config=config, seed=seed)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Fitted:
        """Load what ``save`` wrote."""
        return self.base.load(folder, task, backbone, _Teachers(self, teachers))


def is_variant(tables: Tables, name: str) -> bool:
    """Return whether the table ``name`` defines a variant."""
    return "like" in tables.get(name, {})


def lineage(tables: Tables, name: str) -> list[str]:
    """Return ``name`` and its bases, the nearest first, down to a method that is not a variant.

    Raises:
        ConfigError: variants refer to each other in a circle, or ``like`` is not a string.
    """
    found = [name]
    while is_variant(tables, found[-1]):
        like = tables[found[-1]]["like"]
        if not isinstance(like, str):
            raise ConfigError(f"variant '{found[-1]}': like = {like!r} must be a string: write like = \"...\"")
        if like in found:
            raise ConfigError(f"variants refer to each other in a circle: {' -> '.join([*found, like])}")
        found.append(like)
    return found


def settings(tables: Tables, name: str) -> dict[str, Any]:
    """Return the settings of a method or variant: those of its bases, overridden by its own.

    Raises:
        ConfigError: as :func:`lineage`.
    """
    merged: dict[str, Any] = {}
    for one in reversed(lineage(tables, name)):
        table = tables.get(one, {})
        merged |= {key: value for key, value in table.items() if not is_variant(tables, one) or key not in RESERVED}
    return {key: value for key, value in merged.items() if key not in (*RUN_SETTINGS, SEED_OFFSET)}


def run_setting(tables: Tables, name: str, key: str) -> Any:
    """Return engine, executor, seeds or seed offset of a method or variant: its own or its nearest base's, ``None`` for the run's.

    Args:
        key: one of :data:`RUN_SETTINGS`, or :data:`SEED_OFFSET`.

    Raises:
        ConfigError: as :func:`lineage`.
    """
    return next((tables[one][key] for one in lineage(tables, name) if key in tables.get(one, {})), None)


def fit_of(tables: Tables, name: str) -> str:
    """Return the method or variant whose fit ``name`` runs: itself, unless it only runs another one differently.

    Raises:
        ConfigError: as :func:`lineage`.
    """
    return next(
        one for one in lineage(tables, name) if not {"like"} < {*tables.get(one, {})} <= {"like", *RUN_SETTINGS}
    )


def method_of(tables: Tables, name: str) -> Method:
    """Return the method or variant called ``name``.

    Raises:
        UnknownNameError: it, or a method in its ``like`` or ``needs``, does not exist.
        ConfigError: a variant is invalid.
        MethodError: its plug-in cannot be imported or lacks a part of the contract.
    """
    if not is_variant(tables, name):
        _refuse_unless_known(tables, "method", name)
        if "needs" in tables.get(name, {}):
            raise ConfigError(
                f"[method.{name}] needs = ...: only variants can have other teachers: "
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
            roles = _reassign(one, roles, tables[one]["needs"])
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
    try:
        check_method_name(name)
    except ValueError as error:
        raise ConfigError(f"variant {name!a:.60}: this name is not allowed: {error}") from error


def _reassign(variant: str, roles: Mapping[str, str], needs: Any) -> dict[str, str]:
    """Return the roles after one ``needs``: a list replaces all roles, a mapping those that it names."""
    names = needs.values() if isinstance(needs, Mapping) else needs
    if not isinstance(needs, list | tuple | Mapping) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f'variant \'{variant}\': needs = {needs!r} must name methods: write needs = ["..."] or needs = {{role = "..."}}'
        )
    if not isinstance(needs, Mapping):
        return {name: name for name in needs}
    for role in needs:
        if role not in roles:
            raise ConfigError(
                f"variant '{variant}': needs has an unknown role '{role}': its roles are {', '.join(roles) or 'none'}"
            )
    return {**roles, **needs}
