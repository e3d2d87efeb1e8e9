"""One dataset with one seed: settings, data, backbone and the methods fitted on it."""

from __future__ import annotations

import glob
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.contracts import (
    ASSIGNED,
    BY_RULE,
    EngineName,
    Fitted,
    HasCompute,
    HasExecutor,
    LearnsInStages,
    OperatingPoint,
)
from harness.core.environment import torch_threads
from harness.core.errors import BackboneError, ConfigError, MethodError, format_error, is_fatal
from harness.core.files import cache_root, require_space
from harness.core.names import LONGEST_FILE_NAME, check_label, clean
from harness.core.tokens import Task
from harness.encoder.backbone import EMBEDDED, Backbone, check_length, load_backbone, shape_of
from harness.engines.choice import check_engine, check_executor, engine_notes, execution_on, on_engine
from harness.execution.engine_cache import without_compiler
from harness.measure.passes import Contender
from harness.measure.validation import checked_fit, checked_points
from harness.results.schema import Cell
from harness.running.fits.fit_keys import FitKeys
from harness.running.fits.fit_store import FITS, WEIGHTS, load_or_make, unfinished
from harness.running.run_settings import Settings
from harness.running.task import Prepared, load_raw, prepare, without_unlabelled
from harness.toolkit.resume.training_state import forget, resumable

NOT_LOADED = "not loaded"  # stands for the backbone's name in the record of a session that could not be loaded
_TRIED = 8  # rows of a split that are tokenised to check the tokenizer


class Session:
    """One dataset with one seed: data, backbone and the methods fitted on it so far, each loaded when it is first needed.

    Args:
        quiet: print no remarks; those of the first seed in the main process suffice.
        backbones: those that other sessions loaded, by name and language; extended by this one's.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: str,
        seed: int,
        *,
        quiet: bool = False,
        backbones: dict[tuple[str, str], Backbone] | None = None,
    ) -> None:
        self.settings, self.dataset, self.seed = settings.of(dataset), dataset, seed
        self._given = settings
        self._backbones = {} if backbones is None else backbones
        self._quiet = quiet or seed != settings.profile.seeds[0]
        self._fits: dict[str, Fitted] = {}
        self._on_engines: dict[str, Fitted] = {}
        self.failed: dict[str, str] = {}  # fits that cannot be made, with the reason
        self._renewed: set[Path] = set()  # folders that were deleted to be made again
        self.sizes: dict[tuple[str, EngineName | None], int] = {}  # bytes on disk of fits on engines
        self.unusable: str | None = None  # why data or backbone cannot be loaded

    @cached_property
    def raw(self) -> Any:
        profile = self.settings.profile
        return load_raw(
            self.dataset,
            self.settings.source,
            data=self.settings.data,
            max_train=profile.max_train,
            max_dev=profile.max_dev,
            max_test=profile.max_test,
            dev_share=profile.dev_share,
            max_unlabelled=profile.max_unlabelled,
        )

    @cached_property
    def backbone_name(self) -> str:
        """The backbone that the settings give for this dataset's language."""
        backbones = self.settings.profile.backbones
        if self._language in backbones:
            return backbones[self._language]
        raise ConfigError(
            f"dataset '{self.dataset}' is {self._language}, and no backbone is given for that language: "
            f"add --backbone {self._language}=DIR_OR_ID"
        )

    @cached_property
    def _language(self) -> str:
        return str(self.raw.language)

    @cached_property
    def backbone(self) -> Backbone:
        # Only the embedded one depends on the language.
        key = self.backbone_name, self._language if self.backbone_name == EMBEDDED else ""
        if key not in self._backbones:
            self._backbones[key] = self._load_backbone()
        return self._backbones[key]

    def _load_backbone(self) -> Backbone:
        if self.backbone_name == EMBEDDED and self.settings.source != "embedded":
            raise ConfigError(
                f"the embedded backbone only knows the embedded language, not the words of '{self.dataset}': "
                f"give another one with --backbone {self._language}=DIR_OR_ID"
            )
        backbone = load_backbone(self.backbone_name, self._language, device=self.settings.device)
        try:
            check_label(backbone.name, longest=LONGEST_FILE_NAME)
        except ValueError as error:
            raise BackboneError(f"backbone {backbone.name!a}: results show this name: {error}") from error
        return backbone

    @cached_property
    def prepared(self) -> Prepared:
        if self.unusable is not None:  # it would fail again
            raise MethodError(self.unusable)
        try:
            found = prepare(self.raw, self.backbone, self.settings.profile.max_length)
        except Exception as error:
            self.unusable = format_error(error)
            raise
        if not self._quiet:
            self._tell(found.unknown)
        return found

    def notes(self, name: str) -> list[str]:
        """Return notes on what a method, or one that it needs, learns from beyond train rows, and on its engine."""
        profile = self.settings.profile
        uses = any(profile.uses_unlabelled(one) for one in profile.in_order([name]))
        return [*(self.prepared.unlabelled_notes() if uses else ()), *engine_notes(profile.engine(name))]

    def _tell(self, remarks: Iterable[str]) -> None:
        for remark in remarks:
            print(clean(f"{self.dataset}: {remark}"), file=sys.stderr)

    def with_seed(self, seed: int) -> Session:
        """Return a session of the same data and backbone with another seed; loaded data is shared."""
        other = Session(self._given, self.dataset, seed, quiet=True, backbones=self._backbones)
        vars(other).update({part: vars(self)[part] for part in ("raw", "backbone", "prepared") if part in vars(self)})
        return other

    def check(self) -> None:
        """Load the data and the backbone unless they are embedded, print remarks on the data, tokenise a few rows of each split.

        Raises:
            GeepBenchError: the data or the backbone cannot be used.
        """
        named = {self.settings.profile.backbones.get(language) for language in ("en", "zh")}
        if self.settings.source == "embedded" and named == {EMBEDDED}:
            check_length(EMBEDDED, shape_of(EMBEDDED), self.settings.profile.max_length)
            return
        raw, backbone = self.raw, self.backbone
        self._tell(raw.remarks)
        check_length(self.backbone_name, backbone.shape, self.settings.profile.max_length)
        for split in (raw.train, raw.dev, raw.test):
            few = split.select(range(min(len(split), _TRIED)))
            backbone.encode(few.texts, few.pairs, max_length=self.settings.profile.max_length)

    @property
    def keys(self) -> FitKeys:
        """The content keys of fits and weights."""
        return FitKeys(self.settings, self.seed, self.prepared, self.backbone)

    def fit_key(self, name: str) -> str:
        """Return the content key of a fitted method (:meth:`FitKeys.fit`)."""
        return self.keys.fit(name)

    def weights_key(self, name: str) -> str:
        """Return the content key of what training makes for a method (:meth:`FitKeys.weights`)."""
        return self.keys.weights(name)

    def _folder(self, name: str) -> Path:
        return cache_root() / FITS / f"{self.dataset}--{self.settings.profile.fit_of(name)}--{self.fit_key(name)}"

    def _weights_folder(self, name: str) -> Path:
        return cache_root() / WEIGHTS / f"{self.dataset}--{self.weights_key(name)}"

    def cache_folders(self, name: str) -> list[Path]:
        """Return the folders of the cache that the fit of a method may have."""
        return [self._weights_folder(name), self._folder(name)]

    def is_cached(self, name: str) -> bool:
        """Return whether a fit of this method with these settings and data is in the cache."""
        return self._folder(name).is_dir()

    def has_weights(self, name: str) -> bool:
        """Return whether the cache has the weights of a method that learns in stages, so that a fit only chooses."""
        method = self.settings.profile.method_of(name)
        return isinstance(method, LearnsInStages) and self._weights_folder(name).is_dir()

    def may_be_cached(self, name: str) -> bool:
        """Return whether the cache has a fit of this name with any settings; loads nothing."""
        name = self.settings.profile.fit_of(name)
        return any((cache_root() / FITS).glob(f"{glob.escape(f'{self.dataset}--{name}')}--*"))

    def forget(self, name: str) -> None:
        """Delete a fit and its weights from the cache."""
        for folder in (self._folder(name), self._weights_folder(name)):
            shutil.rmtree(folder, ignore_errors=True)

    def fit(self, name: str) -> Fitted:
        """Return the fit of a method or variant, in float: from this process, from the cache, or trained now.

        Raises:
            ConfigError: a setting is invalid.
            MethodError: it, or a method it needs, cannot be used.
            Exception: a bug in its code.
        """
        name = self.settings.profile.fit_of(name)
        if name in self._fits:
            return self._fits[name]
        if name in self.failed:  # the same fit would fail again
            raise MethodError(self.failed[name])
        try:
            self._fits[name] = self._fit(name)
        except Exception as error:
            self.failed[name] = format_error(error)
            raise
        return self._fits[name]

    def check_engine(self, name: str) -> None:
        """Check that a method can use its engine and its executor, as far as that is known before it is fitted.

        Raises:
            MethodError: the device or the method does not fit, or a library is missing.
        """
        profile = self.settings.profile
        kind = getattr(profile.method_of(name), "fitted", None)
        if (engine := profile.engine(name)) is not None:
            check_engine(engine, name, self.settings.device, kind)
        if (executor := profile.executor(name)) is not None and kind is not None:
            check_executor(executor, name, kind)

    def fitted(self, name: str) -> Fitted:
        """Return :meth:`fit` on the engine of the method or variant.

        Raises:
            MethodError: it cannot use its engine or its executor; else as :meth:`fit`.
        """
        engine, executor = self.settings.profile.engine(name), self.settings.profile.executor(name)
        if engine is None and executor is None:
            return self.fit(name)
        if name not in self._on_engines:
            self.check_engine(name)
            fit = self.fit(name)
            if executor is not None:
                check_executor(executor, name, fit)
            if engine is not None:
                check_engine(engine, name, self.settings.device, type(fit))
                fit = on_engine(engine, fit, self.prepared.task.train.tokens)
            self._on_engines[name] = fit
        return self._on_engines[name]

    def _fit(self, name: str) -> Fitted:
        method = self.settings.profile.method_of(name)
        config, task = self.settings.profile.config(name), self._task(name)
        teachers = {need: self._teacher(name, need) for need in method.needs}

        def make() -> Fitted:
            if not isinstance(method, LearnsInStages):
                with self._training(self._folder(name)):
                    return method.fit(task, self.backbone, teachers, config=config, seed=self.keys.seed_of(name))
            weights = self.weights(name)
            with torch_threads(self.settings.fit_threads):
                return method.choose(weights, task, config=config, seed=self.keys.seed_of(name))

        shared = self._weights_folder(name) if isinstance(method, LearnsInStages) else None
        with self.naming_errors(name):
            return self._load_or_make(name, self._folder(name), teachers, make, shared)

    def weights(self, name: str) -> Fitted:
        """Return what a method that learns in stages trained, from the cache or trained now; the fit of another method."""
        profile = self.settings.profile
        name = profile.fit_of(name)
        method = profile.method_of(name)
        if not isinstance(method, LearnsInStages):
            return self.fit(name)
        # No choices of teachers, since the key of the weights does not have them.
        teachers = {need: self.weights(need) for need in method.needs}

        def make() -> Fitted:
            config, task = profile.config(name), self._task(name)
            with self._training(self._weights_folder(name)):
                return method.train_weights(task, self.backbone, teachers, config=config, seed=self.keys.seed_of(name))

        return self._load_or_make(name, self._weights_folder(name), teachers, make)

    @contextmanager
    def _training(self, folder: Path) -> Iterator[None]:
        require_space(cache_root(), sum(tensor.nbytes for tensor in self.backbone.state.values()))
        with torch_threads(self.settings.fit_threads), resumable(unfinished(folder)):
            yield

    def _task(self, name: str) -> Task:
        task = self.prepared.task
        return task if self.settings.profile.uses_unlabelled(name) else without_unlabelled(task, name)

    def _load_or_make(
        self,
        name: str,
        folder: Path,
        teachers: Mapping[str, Fitted],
        make: Callable[[], Fitted],
        shared: Path | None = None,
    ) -> Fitted:
        if self.settings.fresh and folder not in self._renewed:
            shutil.rmtree(folder, ignore_errors=True)
            forget(unfinished(folder))
            self._renewed.add(folder)
        method, task = self.settings.profile.method_of(name), self._task(name)

        def load(place: Path) -> Fitted:
            return checked_fit(method.load(place, task, self.backbone, teachers), name)

        fitted = load_or_make(folder, load, lambda: checked_fit(make(), name), shared)
        forget(unfinished(folder))
        return fitted

    def _teacher(self, name: str, need: str) -> Fitted:
        try:
            return self.fit(need)
        except Exception as error:
            if is_fatal(error):
                raise
            raise MethodError(f"method '{name}' learns from '{need}', which failed: {format_error(error)}") from error

    def points(self, name: str) -> list[OperatingPoint]:
        """Return the operating points of a method or variant, chosen with the float weights on any engine.

        Raises:
            MethodError: they do not follow the contract.
        """
        fit = self.fit(name)
        with self.naming_errors(name):
            return checked_points(fit.operating_points(self.prepared.task.dev))

    def contender(self, name: str, point: OperatingPoint) -> Contender:
        """Return a fitted method or variant at a point, executed as the settings and its engine say."""
        profile = self.settings.profile
        execution = execution_on(profile.engine(name), self.settings.execution, profile.executor(name))
        return Contender(self.fitted(name), replace(point, execution=execution))

    @contextmanager
    def naming_errors(self, name: str) -> Iterator[None]:
        """Add a variant's name to errors from inside: the code knows only the name of the variant's base."""
        try:
            yield
        except ConfigError as error:
            if name not in self.settings.profile.variants:
                raise
            raise type(error)(f"variant '{name}': {error}") from error

    def cell(self, name: str, point: OperatingPoint, fitted: Fitted | None = None) -> Cell:
        """Return the coordinates of one measurement or, without ``fitted``, of the fit itself."""
        given = execution_on(None, self.settings.execution, self.settings.profile.executor(name))
        executor = fitted.executor if isinstance(fitted, HasExecutor) else "own"
        engine = self.settings.profile.engine(name)
        compute = fitted.compute if isinstance(fitted, HasCompute) else None
        if compute == "eager" and engine is None:
            compute = without_compiler(given.compute)
        return Cell(
            method=name,
            dataset=self.dataset,
            source=self.settings.source,  # type: ignore[arg-type]  # one of the three by construction
            backbone=self.backbone.name if self.unusable is None else NOT_LOADED,
            seed=self.seed,
            point=point.name,
            protocol=given.protocol,
            order=given.order + (f"/window={given.window}" if given.window else ""),
            executor={ASSIGNED: given.executor, BY_RULE: given.rule_executor}.get(executor, executor),
            batch_size=given.batch_size,
            device=self.settings.device,
            dtype=given.dtype,
            compute=compute or given.compute,
            batch_tokens=given.batch_tokens,
            engine=engine,
        )
