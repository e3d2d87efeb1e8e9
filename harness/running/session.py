"""One dataset with one seed: settings, data, backbone and the methods fitted on it."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.contracts import (
    ASSIGNED,
    Compute,
    DType,
    Execution,
    Fitted,
    HasCompute,
    HasExecutor,
    Method,
    OperatingPoint,
    UsesWordHead,
)
from harness.core.errors import ConfigError, DeviceError, MethodError, ResultError, concerns_all, told
from harness.core.files import cache_root, content_key, write_folder
from harness.encoder.backbone import EMBEDDED, Backbone, load_backbone
from harness.results.schema import Cell
from harness.running.profile import Profile
from harness.running.task import Prepared, check_names, load_raw, prepare

# Raised whenever a change of the chassis or of the training loop changes what methods learn.
CHASSIS_VERSION = 1
FITTED_PARTS = ("operating_points", "predict", "save", "cost")


@dataclass(frozen=True)
class Settings:
    """A profile and what the command line overrides in it.

    Attributes:
        data: folder of local data; makes the source ``local``.
        fresh: refit and measure again whatever is there already.
    """

    profile: Profile
    out: Path
    data: Path | None = None
    device: str = "cpu"
    fresh: bool = False

    @property
    def source(self) -> str:
        return "local" if self.data is not None else self.profile.source

    @property
    def dtype(self) -> DType:
        chosen = self.profile.execution.dtype
        return ("bfloat16" if self.device == "cuda" else "float32") if chosen == "auto" else chosen

    @property
    def compute(self) -> Compute:
        chosen, protocol = self.profile.execution.compute, self.profile.execution.protocol
        if chosen != "auto":
            return chosen
        # Attention over packed rows has a kernel that graphs can hold in half precision only.
        return "graphs" if self.device == "cuda" and (self.dtype == "bfloat16" or protocol == "paper") else "eager"

    @property
    def execution(self) -> Execution:
        given = self.profile.execution
        return Execution(
            given.batch_size,
            given.protocol,
            given.order,
            given.window,
            given.executor,
            self.profile.max_length,
            self.dtype,
            self.compute,
            given.batch_tokens,
        )


def check(settings: Settings) -> None:
    """Complain about names, device and folders before anything expensive starts.

    Raises:
        GeepBenchError: something asked for does not exist.
    """
    profile = settings.profile
    # Tables of settings and comparisons, too: a typo there would otherwise change nothing, silently.
    compared = itertools.chain(profile.compare, *profile.compare.values())
    for name in dict.fromkeys([*profile.methods, profile.reference, *profile.method, *compared]):
        try:
            profile.in_order([name])
        except MethodError:  # its cells will fail and say so; those of others need not
            continue
    if not profile.methods or not profile.datasets or not profile.seeds:
        raise ConfigError("nothing to run: name at least one method, one dataset and one seed")
    if settings.source == "local" and settings.data is None:
        raise ConfigError(f"profile '{profile.name}' measures real data: give its folder with --data DIR")
    check_names(profile.datasets, settings.source, settings.data)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: this machine has no usable CUDA device: leave --device out, or say --device cpu"
        )
    if "graphs" in settings.compute:
        if settings.device != "cuda":
            raise ConfigError(f"compute = '{settings.compute}' needs --device cuda: choose auto, eager or compiled")
        if settings.dtype == "float32" and profile.execution.protocol == "modern":
            raise ConfigError(
                f"compute = '{settings.compute}' of packed batches needs dtype = 'bfloat16': choose that, or auto, eager "
                "or compiled"
            )


def checked_fit(fitted: Fitted, name: str) -> Fitted:
    """``fitted``, if it has all parts.

    Raises:
        MethodError: it lacks one.
    """
    missing = [part for part in FITTED_PARTS if not hasattr(fitted, part)]
    if missing:
        raise MethodError(
            f"method '{name}' gives a fitted {type(fitted).__name__} that lacks {', '.join(missing)}: see harness/contracts.py"
        )
    return fitted


class Bench:
    """One dataset with one seed: its data, its backbone, and the methods fitted on it so far.

    Everything is loaded when it is first needed, so that a finished bench costs nothing.
    """

    def __init__(self, settings: Settings, dataset: str, seed: int) -> None:
        self.settings, self.dataset, self.seed = settings, dataset, seed
        self._fitted: dict[str, Fitted] = {}
        self._failed: dict[str, str] = {}

    @cached_property
    def _raw(self) -> Any:
        profile = self.settings.profile
        return load_raw(
            self.dataset,
            self.settings.source,
            data=self.settings.data,
            max_train=profile.max_train,
            max_test=profile.max_test,
        )

    @cached_property
    def backbone_name(self) -> str:
        """What the profile or the command line says for this dataset's language."""
        backbones = self.settings.profile.backbones
        if self._language in backbones:
            return backbones[self._language]
        raise ConfigError(
            f"dataset '{self.dataset}' is {self._language} and no backbone was given for that language: "
            f"add --backbone {self._language}=DIR_OR_ID"
        )

    @cached_property
    def _language(self) -> str:
        return str(self._raw.language)

    @cached_property
    def backbone(self) -> Backbone:
        if self.backbone_name == EMBEDDED and self.settings.source != "embedded":
            raise ConfigError(
                f"the embedded backbone only knows the embedded language, not the words of '{self.dataset}': "
                f"give one with --backbone {self._language}=DIR_OR_ID"
            )
        return load_backbone(self.backbone_name, self._language, device=self.settings.device)

    @cached_property
    def prepared(self) -> Prepared:
        return prepare(self._raw, self.backbone, self.settings.profile.max_length)

    def fit_key(self, name: str) -> str:
        """Content key of a fitted method: everything its weights follow from."""
        profile = self.settings.profile
        method, named = profile.method_of(name), profile.named_content(name)
        uses_head = isinstance(method, UsesWordHead) and method.uses_word_head(profile.config(name))
        return content_key(
            CHASSIS_VERSION,
            profile.identity(name),
            method.version,
            profile.config(name),
            self.seed,
            self.prepared.task.fingerprint,
            self.backbone.fingerprint,
            self.settings.device,
            [self.fit_key(need) for need in method.needs],
            *([] if named is None else [named]),
            *([self.backbone.head_fingerprint] if uses_head else []),
        )

    def fitted(self, name: str) -> Fitted:
        """The fitted method or variant: from this process, from the cache, or trained now.

        Raises:
            ConfigError: a setting that makes no sense.
            MethodError: it cannot be used, or one that it learns from cannot.
            Exception: whatever its code raises beside.
        """
        if name in self._fitted:
            return self._fitted[name]
        if name in self._failed:  # nobody waits twice for the same failure
            raise MethodError(self._failed[name])
        try:
            self._fitted[name] = self._fit(name)
        except Exception as error:
            self._failed[name] = told(error)
            raise
        return self._fitted[name]

    def _fit(self, name: str) -> Fitted:
        profile = self.settings.profile
        method = profile.method_of(name)
        task, backbone = self.prepared.task, self.backbone
        teachers = {need: self._teacher(name, need) for need in method.needs}
        folder = cache_root() / "fits" / f"{self.dataset}--{name}--{self.fit_key(name)}"
        if self.settings.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        with self.naming(name):
            loaded = self._load(method, folder, teachers)
            if loaded is not None:
                return checked_fit(loaded, name)
            fitted = method.fit(task, backbone, teachers, config=profile.config(name), seed=self.seed)
        write_folder(folder, checked_fit(fitted, name).save)
        return fitted

    def _teacher(self, name: str, need: str) -> Fitted:
        try:
            return self.fitted(need)
        except Exception as error:
            if concerns_all(error):
                raise
            raise MethodError(f"method '{name}' learns from '{need}', which failed: {told(error)}") from error

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """A variant's code knows the name of its method only; complaints from inside also bear the variant's."""
        try:
            yield
        except ConfigError as error:
            if name not in self.settings.profile.variants:
                raise
            raise type(error)(f"variant '{name}': {error}") from error

    def _load(self, method: Method, folder: Path, teachers: Mapping[str, Fitted]) -> Fitted | None:
        if not folder.is_dir():
            return None
        try:
            return method.load(folder, self.prepared.task, self.backbone, teachers)
        except ResultError as error:
            print(f"{error}; fitting again", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def cell(self, name: str, point: OperatingPoint, fitted: Fitted | None = None) -> Cell:
        """Coordinates of one measurement; without ``fitted``, of the fit itself."""
        given = self.settings.execution
        executor = fitted.executor if isinstance(fitted, HasExecutor) else "own"
        compute = fitted.compute if isinstance(fitted, HasCompute) else None
        return Cell(
            method=name,
            dataset=self.dataset,
            source=self.settings.source,  # type: ignore[arg-type]  # one of the three by construction
            backbone=self.backbone.name,
            seed=self.seed,
            point=point.name,
            protocol=given.protocol,
            order=given.order + (f"/window={given.window}" if given.window else ""),
            executor=given.executor if executor == ASSIGNED else executor,
            batch_size=given.batch_size,
            device=self.settings.device,
            dtype=given.dtype,
            compute=compute or given.compute,
            batch_tokens=given.batch_tokens,
        )
