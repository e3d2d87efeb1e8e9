"""Fitted methods of an export as folders: the one that answers, and those whose weights it borrows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from harness import registry
from harness.contracts import Fitted
from harness.core.errors import ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.deploy.export_format import FITS, ExportedFit, ExportFacts, version_of
from harness.encoder.backbone import Backbone
from harness.running.session import Session
from harness.running.variants import Variant


class _Asked(Mapping[str, Fitted]):
    """Teachers by role that remembers which ones were used."""

    def __init__(self, teachers: Mapping[str, Fitted]) -> None:
        self._teachers = teachers
        self.used: dict[str, None] = {}

    def __getitem__(self, role: str) -> Fitted:
        found = self._teachers[role]
        self.used[role] = None
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._teachers)

    def __len__(self) -> int:
        return len(self._teachers)


def write_fits(session: Session, name: str, folder: Path) -> dict[str, ExportedFit]:
    """Save a fitted method below ``folder/fits``, with those that are needed to load it again.

    A teacher that only served training is left out: which ones are needed is found by loading what was saved.

    Returns:
        The fits by name.
    """
    name = session.settings.profile.fit_of(name)
    method = session.settings.profile.method_of(name)
    base, roles = (method.base, method.roles) if isinstance(method, Variant) else (method, {n: n for n in method.needs})
    place = folder / FITS / name
    place.mkdir(parents=True)
    session.fit(name).save(place)
    teachers = _Asked({role: session.fit(need) for role, need in roles.items()})
    base.load(place, session.prepared.task, session.backbone, teachers)
    borrowed = {role: session.settings.profile.fit_of(roles[role]) for role in teachers.used}
    fits = {name: ExportedFit(method=base.name, version=version_of(base), teachers=borrowed)}
    for need in dict.fromkeys(borrowed.values()):
        if not (folder / FITS / need).is_dir():
            fits |= write_fits(session, need, folder)
    return fits


def read_fits(folder: Path, facts: ExportFacts, backbone: Backbone) -> Fitted:
    """Load the fitted method that answers.

    Raises:
        UnknownNameError: its method is not installed.
        ResultError: the code of a method has another version, or files do not fit together.
    """
    nothing = Split(TokenSet.from_lists([]), torch.zeros(0, dtype=torch.int64))
    classes = len(facts.label_names)
    task = Task(facts.cell.dataset, facts.language, classes, facts.max_length, nothing, nothing)

    def load(name: str) -> Fitted:
        fit = facts.fits[name]
        method = registry.get(fit.method)
        if version_of(method) != fit.version:
            raise ResultError(
                f"{folder}: exported with version {fit.version} of method '{fit.method}', and version {version_of(method)} is "
                f"installed: export the cell again, or use geep-bench {facts.program}"
            )
        teachers = {role: load(need) for role, need in fit.teachers.items()}
        return method.load(folder / FITS / name, task, backbone, teachers)

    return load(facts.fit)
