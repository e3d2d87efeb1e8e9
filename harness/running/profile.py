"""A profile states what is measured, on which data and how. It is a TOML file: data, never code.

Profiles are found by path, or by name in the packages of the entry-point group ``geep.profiles``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import partial
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, PrivateAttr, ValidationError

from harness import registry
from harness.contracts import (
    EngineName,
    HasSettings,
    LearnsInStages,
    Method,
    NamesContent,
    UsesUnlabelled,
)
from harness.core.digest import content_digest
from harness.core.errors import ConfigError, GeepBenchError, SettingsError, UnknownNameError
from harness.core.names import Name
from harness.core.settings import Place, StrictSettings, explain
from harness.core.text_formats import parse_toml, read_toml
from harness.data.splits import DEV_SHARE
from harness.data.unlabelled import MOST_UNLABELLED
from harness.engines.choice import ExecutorName
from harness.results.search_record import SearchPlan
from harness.running import variants
from harness.running.fit_resources import FitResources
from harness.running.measuring.timing import TimingSettings

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]

GROUP = "geep.profiles"
_PATH = re.compile(r"\w[/\\.]|[/\\.~]\w")  # what may be a path: a letter or digit beside a separator, a dot or ~

# Table (a method's name, or "training" for all methods), key and value.
Override = tuple[str, str, Any]


class ExecutionSettings(StrictSettings):
    """How predictions are run, see :class:`harness.contracts.Execution`.

    ``"auto"`` is bfloat16 in CUDA graphs on a CUDA device, and float32 with packed weights on a CPU.
    """

    batch_size: int = Field(default=32, ge=1)
    protocol: Literal["modern", "paper"] = "modern"
    order: Literal["arrival", "length"] = "length"
    window: int = Field(default=0, ge=0)
    executor: Literal["ladder", "exact-k"] = "ladder"
    rule_executor: Literal["shrink", "rebatch"] = "shrink"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compute: Literal["auto", "eager", "packed", "compiled", "graphs", "compiled-graphs"] = "auto"
    batch_tokens: int = Field(default=0, ge=0)


class EngineSettings(StrictSettings):
    """Keys that any table ``method`` may have, in addition to the settings of the method."""

    engine: EngineName | None = Field(
        None, description="engine of the method; by default, dtype and compute of the run decide"
    )
    executor: ExecutorName | None = Field(
        None,
        description="executor of the method: `ladder` or `exact-k`, `shrink` or `rebatch`; by default that of `[execution]`",
    )
    seeds: list[Seed] | None = Field(None, description="the seeds of the run with which it is measured; by default all")
    seed_offset: int | None = Field(
        None,
        ge=0,
        le=2**31,
        description="added to the run's seeds when it is fitted, for a teacher of another seed; by default 0",
    )


class RowSettings(StrictSettings):
    """Rows and lengths of one dataset, in a table ``rows.NAME``. They replace the profile's; command-line options replace both."""

    max_length: int | None = Field(None, ge=8, description="tokens per sample")
    max_train: int | None = Field(None, ge=1, description="most train rows")
    max_dev: int | None = Field(None, ge=1, description="most dev rows")
    max_test: int | None = Field(None, ge=1, description="most test rows")

    def without(self, keys: Iterable[str]) -> dict[str, int]:
        """Return the values of all keys but these."""
        return self.model_dump(exclude_none=True, exclude={*keys})


class Profile(StrictSettings):
    """What a run does unless the command line says otherwise.

    Attributes:
        name: the file's name without its ending, if nothing else is given.
        title: one line that describes it.
        source: where data comes from.
        datasets: names.
        methods: names of methods and variants to measure; the methods they need are fitted, too, but not measured.
        reference: the method that speed-ups are measured against.
        seeds: training seeds.
        speeds: entropy thresholds (FastBERT's speed) at which early-exit methods are measured.
        rounds: timed passes per cell, at most.
        timing: which cells are timed, and how.
        workers: processes that fit methods at the same time; on a CPU only. ``fit_processes`` is an older name.
        fit_threads: threads of every fit on a CPU; by default those of torch, divided by ``workers``. Results of training
            depend on it in their last digits, so it is part of the keys of fits.
        max_length: tokens per sample.
        rows: dataset -> other rows and lengths than the profile's.
        max_train, max_dev, max_test: maximum number of rows (stratified, seed 0); without ``max_dev``, ``max_train`` limits dev,
            too (:func:`harness.data.splits.limit_dataset`).
        dev_share: dev rows for one train row, at most: 0.5 keeps 250 dev rows for 500 train rows, whatever ``max_dev`` says.
        max_unlabelled: maximum number of texts without labels, for methods that learn from them: rows of train beyond
            ``max_train``, and a folder's file ``unlabelled``; 0 for none.
        backbones: language -> ``"embedded"``, folder or hub id.
        execution: how predictions are run.
        training: settings for all methods: those of :class:`harness.toolkit.method_settings.Recipe`, and ``head``.
        compare: method -> other methods that the report compares it with, in addition to its standard ones.
        search: trials for training settings; a run does not read them.
        resources: method, or ``default`` -> what its fits reserve on a node of a cluster; results do not depend on it.
        method: settings per method, which override ``training``; with ``like``, a variant (:mod:`harness.running.variants`);
            ``engine`` (:mod:`harness.engines`), ``executor`` and ``seeds`` replace those of the run.
    """

    name: str = ""
    title: str
    source: Literal["embedded", "local", "hub"]
    datasets: list[Name]
    methods: list[Name]
    reference: Name = "bert"
    seeds: list[Seed] = [0]
    speeds: list[Annotated[float, Field(ge=0, le=1)]] = [0.1, 0.5, 0.8]
    rounds: int = Field(default=3, ge=1)
    timing: TimingSettings = TimingSettings()
    workers: int = Field(default=1, ge=1, le=64, validation_alias=AliasChoices("workers", "fit_processes"))
    fit_threads: int | None = Field(default=None, ge=1, le=1024)
    max_length: int = Field(default=128, ge=8)
    max_train: int | None = Field(default=None, ge=1)
    max_dev: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    dev_share: float = Field(default=DEV_SHARE, gt=0, le=1)
    max_unlabelled: int = Field(default=MOST_UNLABELLED, ge=0)
    rows: dict[Name, RowSettings] = Field(default_factory=dict)
    backbones: dict[str, str] = Field(default_factory=dict)
    execution: ExecutionSettings = ExecutionSettings()
    training: dict[str, Any] = Field(default_factory=dict)
    compare: dict[Name, list[Name]] = Field(default_factory=dict)
    search: SearchPlan | None = None
    resources: dict[Name, FitResources] = Field(default_factory=dict)
    method: dict[Name, dict[str, Any]] = Field(default_factory=dict)

    # For error messages only: the name or path it was loaded by, and the settings that override the file's.
    _origin: str = PrivateAttr(default="")
    _overridden: frozenset[tuple[str, str]] = PrivateAttr(default=frozenset())

    def config(self, method: str) -> dict[str, Any]:
        """Return the settings of a method or variant: the common ones and its own."""
        return {"speeds": self.speeds, **self.training, **variants.settings(self.method, method)}

    def common(self, name: str) -> dict[str, Any]:
        """Return the settings that a method takes from the table ``training``, which all methods share."""
        own = variants.settings(self.method, name)
        return {key: value for key, value in self.training.items() if key not in own}

    def method_of(self, name: str) -> Method:
        """Return the method or variant called ``name``.

        Raises:
            UnknownNameError: it, or a method in its ``like`` or ``needs``, does not exist.
            ConfigError: a variant is invalid.
            MethodError: its plug-in cannot be imported or lacks a part of the contract.
        """
        return variants.method_of(self.method, name)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return ``names`` and the methods they need, each after those (:func:`harness.registry.in_order`)."""
        return registry.in_order(names, self.method_of)

    def engine(self, name: str) -> EngineName | None:
        """Return the engine that is set for a method or variant; ``None``: as the execution says."""
        chosen: EngineName | None = variants.run_setting(self.method, name, "engine")
        return chosen

    def executor(self, name: str) -> ExecutorName | None:
        """Return the executor that is set for a method or variant; ``None``: as the execution says."""
        chosen: ExecutorName | None = variants.run_setting(self.method, name, "executor")
        return chosen

    def seeds_of(self, name: str) -> list[int]:
        """Return the seeds of the run with which a method or variant is measured."""
        chosen = variants.run_setting(self.method, name, "seeds")
        return self.seeds if chosen is None else [seed for seed in self.seeds if seed in chosen]

    def seed_offset(self, name: str) -> int:
        """Return what is added to the seed of the run when a method or variant is fitted."""
        return variants.run_setting(self.method, name, variants.SEED_OFFSET) or 0

    def with_rows_of(self, dataset: str) -> Profile:
        """Return the profile with the rows and lengths of one dataset instead of the common ones."""
        own = self.rows.get(dataset)
        return self if own is None else self.model_copy(update=own.without(()))

    def fit_of(self, name: str) -> str:
        """Return the method or variant whose fit ``name`` runs (:func:`harness.running.variants.fit_of`)."""
        return variants.fit_of(self.method, name)

    def fits(self, names: Iterable[str]) -> list[str]:
        """Return the methods and variants whose fits ``names`` run or learn from, each after those that it needs."""
        return list(dict.fromkeys(map(self.fit_of, self.in_order(names))))

    def identity(self, name: str) -> Any:
        """Return what identifies a method or variant in content keys, apart from its settings (JSON)."""
        method = self.method_of(name)
        return method.identity if isinstance(method, variants.Variant) else name

    def version(self, name: str) -> int | str:
        """Return the version of a method's code in keys and results, that of its weights included."""
        method = self.method_of(name)
        weights = method.weights_version if isinstance(method, LearnsInStages) else 1
        # As before there were stages, so that fits and cells of those versions are still found.
        return method.version if weights == 1 else f"{method.version}.{weights}"

    def named_content(self, name: str) -> Any:
        """Return the content that settings only name, e.g. a folder of weights (JSON), or ``None``.

        For a method that does not say so itself (:class:`~harness.contracts.NamesContent`), that is the content of every file
        and folder whose path is a setting.

        Raises:
            ConfigError: a file cannot be read.
        """
        method, config = self.method_of(name), self.config(name)
        if isinstance(method, NamesContent):
            return method.named_content(config)
        return {key: content for key, value in config.items() if (content := _content_below(value))} or None

    def uses_unlabelled(self, name: str) -> bool:
        """Return whether a method or variant learns from texts without labels (:class:`~harness.contracts.UsesUnlabelled`)."""
        method = self.method_of(name)
        return isinstance(method, UsesUnlabelled) and method.uses_unlabelled(self.config(name))

    @property
    def variants(self) -> list[str]:
        """Names of its variants."""
        return [name for name in self.method if variants.is_variant(self.method, name)]

    def with_settings(self, overrides: Iterable[Override]) -> Profile:
        """Return a copy in which settings of methods, or of ``training``, are replaced; the last of equal keys counts."""
        tables = {"training": dict(self.training), **{name: dict(own) for name, own in self.method.items()}}
        overridden = set(self._overridden)
        for table, key, value in overrides:
            tables.setdefault(table, {})[key] = value
            overridden.add((table, key))
        copy = self.model_copy(update={"training": tables.pop("training"), "method": tables})
        copy._overridden = frozenset(overridden)
        return copy

    def problems(self, names: Iterable[str]) -> list[str]:
        """Return one line per invalid setting of the methods ``names``: file, table, key, and what is allowed.

        Methods without a model of their settings (:class:`harness.contracts.HasSettings`) validate when they are fitted.
        """
        lines: dict[str, str] = {}
        for name in names:
            try:
                method = self.method_of(name)
            except GeepBenchError:  # reported when the method is looked up for the run
                continue
            given: list[tuple[type[BaseModel], Any]] = [
                (
                    EngineSettings,
                    {key: variants.run_setting(self.method, name, key) for key in EngineSettings.model_fields},
                )
            ]
            # A plug-in may use the name "settings" for something else than a model.
            if isinstance(method, HasSettings) and isinstance(method.settings, type):
                given.append((method.settings, self.config(name)))
            for model, values in given:
                try:
                    model.model_validate(values)
                except ValidationError as error:
                    for line in explain(error, model, partial(self._place, name)):
                        # A wrong key in [training] concerns all methods, whose known keys differ: one line is enough.
                        lines.setdefault(": ".join(line.split(": ")[:2]), line)
        return list(lines.values())

    def _place(self, name: str, loc: Place) -> str:
        """Name the file and the table that a method's setting comes from, or the option of the command line."""
        key = str(loc[0]) if loc else ""
        family = variants.lineage(self.method, name)
        table = next((one for one in family if key in self.method.get(one, {})), None)
        if table is None and key in self.training:
            table = "training"
        if (table, key) in self._overridden:
            return f"--set {table}.{key}"
        where = f"profile {self._origin or self.name}"
        if table is None:
            return f"{where}, [method.{name}]" if key not in Profile.model_fields else where
        return f"{where}, [{table}]" if table == "training" else f"{where}, [method.{table}]"


def _installed() -> dict[str, Any]:
    """Profile name -> readable file, over all packages of the group."""
    return {
        entry.name.removesuffix(".toml"): entry
        for point in entry_points(group=GROUP)
        for entry in files(point.value).iterdir()
        if entry.name.endswith(".toml")
    }


def names() -> list[str]:
    """Return the names of all installed profiles."""
    return sorted(_installed())


def _content_below(value: Any) -> Any:
    """Return the content of the files and folders that a setting names, in lists and tables as well, ``None`` for others."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {str(key): content for key, part in items if (content := _content_below(part))} or None
    # A word such as "linear" is a choice even if a folder here happens to have that name, and "/" may be a separator.
    if not isinstance(value, str) or not _PATH.search(value):
        return None
    place = os.path.expanduser(value)
    if not (os.path.isfile(place) or os.path.isdir(place)):  # unlike those of Path, these take any text
        return None
    try:
        return content_digest(Path(place))
    except OSError as error:
        raise ConfigError(
            f"'{value}', which a setting names, cannot be read ({error.strerror}): correct that"
        ) from error


def load(name: str) -> Profile:
    """Load a profile by name or by the path of a TOML file.

    Raises:
        UnknownNameError: no profile has this name.
        ConfigError: the file cannot be read, or is not valid TOML.
        SettingsError: keys are unknown, or values have a wrong type or range; one line for each.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"no profile file {name}: give an existing TOML file, or one of {', '.join(names())}")
        try:
            data, title = read_toml(Path(name)), Path(name).stem
        except OSError as error:
            raise ConfigError(f"profile {name} cannot be read: {error.strerror}: give a readable file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"profile {name} cannot be read as UTF-8 text ({error}): save it again") from error
        except ValueError as error:
            raise ConfigError(f"profile {name} is not valid TOML: {error}: correct that line") from error
    else:
        found = _installed()
        if name not in found:
            raise UnknownNameError("profile", name, found)
        data, title = parse_toml(found[name].read_text(encoding="utf-8")), name
    profile = validated({**data, "name": title}, name)
    profile._origin = name
    return profile


def validated(data: dict[str, Any], origin: str) -> Profile:
    """Make a profile of its fields.

    Raises:
        SettingsError: one line per problem; the settings of its methods are included.
    """
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        wrong = {one["loc"][0] for one in error.errors()}
        lines = explain(error, Profile, lambda loc: f"profile {origin}" + (f", [{loc[0]}]" if len(loc) > 1 else ""))
        rest = {key: data[key] for key in ("speeds", "training", "method") if key in data and key not in wrong}
        sound = Profile(title="", source="embedded", datasets=[], methods=[], **rest)
        sound._origin = origin
        raise SettingsError(*lines, *sound.problems(sound.method)) from error
