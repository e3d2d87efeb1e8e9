"""From a stored cell back to its data, backbone and fit: ``run.json`` has the settings, the cache the fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from harness.contracts import OperatingPoint
from harness.core.errors import ConfigError, DeviceError, ResultError, first_line
from harness.core.text_formats import read_json
from harness.results.comparability import differences
from harness.results.run_folder import RunFolder
from harness.results.schema import Binding, Cell, Result
from harness.running.binding import binding_of
from harness.running.fits.fit_plan import missing_fits
from harness.running.profile import Override, Profile, validated
from harness.running.run_settings import Settings, make_settings
from harness.running.session import Session


def settings_of_cell(
    run: RunFolder,
    result: Result,
    *,
    data: Path | None = None,
    backbones: Mapping[str, str] | None = None,
    overrides: Iterable[Override] = (),
) -> Settings:
    """Return the settings with which a cell was measured.

    Results hold no paths, so folders of data, backbones and students must be given again.

    Raises:
        ResultError: the run has no usable ``run.json``.
        ConfigError: the run measured local data, and no folder is given.
        DeviceError: it was measured on a device that is not here.
    """
    cell, place = result.cell, run.path / "run.json"
    try:
        profile = _profile(read_json(place)["profile"], str(place), result)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ResultError(f"{place} cannot be read ({first_line(error)}): run the same command again") from error
    if cell.source == "local" and data is None:
        raise ConfigError(f"{run.path} measured local data, and results hold no paths: give its folder with --data DIR")
    if cell.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("the cell was measured on cuda, and this machine has no usable CUDA device: export it there")
    return make_settings(
        profile,
        out=run.path,
        data=data if cell.source == "local" else None,
        device=cell.device,
        overrides=overrides,
        backbones=backbones,
    )


def _profile(facts: Mapping[str, object], place: str, result: Result) -> Profile:
    cell, profile = result.cell, validated(dict(facts), place)
    execution = {name: getattr(cell, name) for name in ("protocol", "batch_size", "batch_tokens", "dtype")}
    threads = result.binding.fit_threads if result.binding else None
    return profile.model_copy(
        update={
            "name": str(facts["name"]),
            "source": cell.source,
            "execution": profile.execution.model_copy(update=execution),
            # As there, whatever this machine has.
            "fit_threads": threads or profile.fit_threads,
        }
    )


def open_cell(settings: Settings, result: Result) -> Session:
    """Return the session of a cell: with its data, backbone and settings, or none.

    Raises:
        ResultError: data, backbone, settings or code are not those that the cell was measured with.
        GeepBenchError: data or backbone cannot be used.
    """
    cell = result.cell
    session = Session(settings, cell.dataset, cell.seed)
    reference = result.speed.reference if result.speed else None
    if found := differences(result.binding, binding_of(session, cell.method, reference)):
        raise ResultError(
            f"this is not what the cell was measured with: other {', other '.join(found)}: give its --data, --backbone and "
            "--set, or measure the cell again"
        )
    return session


def fit_again(session: Session, method: str) -> bool:
    """Fit what is not in the cache, and say so; return whether there was anything."""
    missing = missing_fits(session, [method])
    for error in missing.failed.values():
        raise error
    names = [job.method for job in missing.needs]
    if names:
        print(f"no longer in the cache, fitted again now: {', '.join(names)}", file=sys.stderr, flush=True)
    session.fitted(method)
    return bool(names)


def point_of_cell(session: Session, result: Result) -> OperatingPoint:
    """Return the operating point of a cell, with the execution of its run.

    Raises:
        ResultError: the fit has no such point, the settings give it other coordinates, or other speeds or budgets make another
            point of this name.
    """
    cell = result.cell
    fitted = session.fitted(cell.method)
    points = {point.name: point for point in session.points(cell.method)}
    if cell.point not in points:
        raise ResultError(f"the fit of {cell.method} has no point '{cell.point}' any more: measure the cell again")
    found = session.cell(cell.method, points[cell.point], fitted)
    if wrong := [name for name in Cell.model_fields if getattr(found, name) != getattr(cell, name)]:
        said = ", ".join(f"{name} ({getattr(cell, name)}, now {getattr(found, name)})" for name in wrong)
        raise ResultError(f"the settings of the run give the cell another {said}: measure the cell again")
    point = session.contender(cell.method, points[cell.point]).point
    # A name does not tell all: which tables a budget can use depends on the other budgets and speeds. Points of a fit that was
    # trained again on another machine may differ in last digits, so other settings must be the reason.
    listed = _other_lists(result.binding, binding_of(session, cell.method, None))
    if listed and _as_json(point.params) != _as_json(result.params):
        raise ResultError(
            f"the point '{cell.point}' of {cell.method} is not the measured one, because the settings that choose points differ: "
            f"{'; '.join(listed)}: give those of the cell with --set, or measure the cell again"
        )
    return point


def _other_lists(one: Binding | None, other: Binding) -> list[str]:
    """Return in words which fits have other speeds or budgets; empty if that is not recorded."""
    known, mine = (binding.points or {} if binding else {} for binding in (one, other))
    return [
        f"{name} ({known[name]} and now {mine[name]})" for name in known if mine.get(name, known[name]) != known[name]
    ]


def _as_json(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)
