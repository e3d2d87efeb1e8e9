"""From a profile to cells: what is finished stays, what is missing is fitted, measured and stored, one cell at a time.

Kept in the run folder, ``plan/<dataset>--<method>--seed<k>.json`` says which cells a fitted method has and which settings and
data they came from. A run that finds its plan and all results does not even load the data.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from harness import registry
from harness.cache import cache_root, content_key, write_folder
from harness.contracts import Execution, Fitted, Method, OperatingPoint
from harness.data.prepare import Prepared, check_names, load_raw, prepare, source_identity
from harness.encoder.backbone import EMBEDDED, Backbone, load_backbone
from harness.errors import ConfigError, DeviceError, GeepBenchError, ResultError
from harness.fingerprint import fingerprint
from harness.measure import clock
from harness.measure.quality import quality
from harness.measure.throughput import Contender, Measured, measure
from harness.profile import Profile
from harness.results import Cell, Checks, Cost, Result, Training
from harness.store import Run, write_json

# Raised whenever a change of the chassis or of the training loop changes what methods learn.
CHASSIS_VERSION = 1


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
    def dtype(self) -> str:
        chosen = self.profile.execution.dtype
        return ("bfloat16" if self.device == "cuda" else "float32") if chosen == "auto" else chosen

    @property
    def execution(self) -> Execution:
        given = self.profile.execution
        return Execution(
            given.batch_size, given.protocol, given.order, given.window, given.executor, self.profile.max_length
        )


@dataclass
class Outcome:
    """How a run went: cells measured now, found finished, and failed.

    Attributes:
        seconds: wall time of the cells measured now, storing included, fitting and loading not.
        predicting: the part of it inside ``predict``; the rest is what the harness itself costs.
    """

    measured: int = 0
    kept: int = 0
    failed: int = 0
    seconds: float = 0.0
    predicting: float = 0.0


def check(settings: Settings) -> None:
    """Complain about names, device and folders before anything expensive starts.

    Raises:
        GeepBenchError: something asked for does not exist.
    """
    profile = settings.profile
    registry.in_order([*profile.methods])
    if not profile.methods or not profile.datasets or not profile.seeds:
        raise ConfigError("nothing to run: name at least one method, one dataset and one seed")
    if settings.source == "local" and settings.data is None:
        raise ConfigError(f"profile '{profile.name}' measures real data: give its folder with --data DIR")
    check_names(profile.datasets, settings.source, settings.data)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: this machine has no usable CUDA device: leave --device out, or say --device cpu")


class Bench:
    """One dataset with one seed: its data, its backbone, and the methods fitted on it so far.

    Everything is loaded when it is first needed, so that a finished bench costs nothing.
    """

    def __init__(self, settings: Settings, dataset: str, seed: int) -> None:
        self.settings, self.dataset, self.seed = settings, dataset, seed
        self._fitted: dict[str, Fitted] = {}
        self._fresh_done: set[str] = set()

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
        method = registry.get(name)
        return content_key(
            CHASSIS_VERSION,
            name,
            method.version,
            self.settings.profile.config(name),
            self.seed,
            self.prepared.task.fingerprint,
            self.backbone.fingerprint,
            self.settings.device,
            [self.fit_key(need) for need in method.needs],
        )

    def fitted(self, name: str) -> Fitted:
        """The fitted method: from this process, from the cache, or trained now."""
        if name in self._fitted:
            return self._fitted[name]
        method = registry.get(name)
        teachers = {need: self.fitted(need) for need in method.needs}
        folder = cache_root() / "fits" / f"{self.dataset}--{name}--{self.fit_key(name)}"
        if self.settings.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        fitted = self._load(method, folder, teachers)
        if fitted is None:
            fitted = method.fit(
                self.prepared.task, self.backbone, teachers, config=self.settings.profile.config(name), seed=self.seed
            )
            write_folder(folder, fitted.save)
        self._fitted[name] = fitted
        return fitted

    def _load(self, method: Method, folder: Path, teachers: Mapping[str, Fitted]) -> Fitted | None:
        if not folder.is_dir():
            return None
        try:
            return method.load(folder, self.prepared.task, self.backbone, teachers)
        except ResultError as error:
            print(f"{error}; fitting again", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def cell(self, name: str, point: OperatingPoint, *, foresees: bool = False) -> Cell:
        """Coordinates of one measurement."""
        given, method = self.settings.execution, registry.get(name)
        assigned = method.kind != "method" or point.params.get("quantile") is not None
        return Cell(
            method=name,
            dataset=self.dataset,
            source=self.settings.source,  # type: ignore[arg-type]  # one of the three by construction
            backbone=self.backbone.name,
            seed=self.seed,
            point=point.name,
            protocol=given.protocol,
            order=given.order + (f"/window={given.window}" if given.window else ""),
            executor=given.executor if assigned else "own",
            batch_size=given.batch_size,
            device=self.settings.device,
            dtype=self.settings.dtype,
        )


def plan_path(run: Run, dataset: str, method: str, seed: int) -> Path:
    return run.path / "plan" / f"{dataset}--{method}--seed{seed}.json"


class Grid:
    """All cells of a run."""

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self.settings = settings
        self.run = Run.create(settings.out)
        self.outcome = Outcome()
        self._identities: dict[str, str] = {}

    def execute(self) -> Outcome:
        """Measure what is missing. Killed at any moment and called again, it loses at most the cell in hand.

        Raises:
            GeepBenchError: the input cannot be used; finished cells stay.
        """
        profile = self.settings.profile
        self.run.results()  # sets broken files aside first, and refuses another schema before any work
        for message in self.run.broken:
            print(message, file=sys.stderr)
        write_json(self.run.path / "run.json", self._facts())
        jobs = [(d, s, m) for d in profile.datasets for s in profile.seeds for m in profile.methods]
        bench: Bench | None = None
        with tqdm(total=len(jobs), desc="run", unit="method", disable=None) as bar:
            for dataset, seed, method in jobs:
                bar.set_description(f"{dataset} {method} seed {seed}")
                if self._finished(dataset, method, seed):
                    bar.update()
                    continue
                if bench is None or (bench.dataset, bench.seed) != (dataset, seed):
                    bench = Bench(self.settings, dataset, seed)
                self._measure(bench, method, bar)
                bar.update()
        return self.outcome

    def _facts(self) -> dict[str, Any]:
        """What was asked, without any path of this machine."""
        settings = self.settings
        facts = settings.profile.model_dump(mode="json")
        facts["backbones"] = {k: Path(v).name if Path(v).is_dir() else v for k, v in settings.profile.backbones.items()}
        return {"profile": facts, "source": settings.source, "device": settings.device, "dtype": settings.dtype}

    def _key(self, dataset: str, method: str) -> str:
        """Content key of a method's cells: settings and data that results follow from."""
        profile = self.settings.profile
        if dataset not in self._identities:
            self._identities[dataset] = source_identity(dataset, self.settings.source, self.settings.data)
        names = registry.in_order([method, profile.reference])
        return content_key(
            CHASSIS_VERSION,
            [(name, registry.get(name).version, profile.config(name)) for name in names],
            self._identities[dataset],
            profile.model_dump(include={"reference", "rounds", "max_length", "max_train", "max_test", "backbones"}),
            asdict(self.settings.execution),
            self.settings.device,
            self.settings.dtype,
        )

    def _finished(self, dataset: str, method: str, seed: int) -> bool:
        """All cells of this method are stored and were made with these settings."""
        path = plan_path(self.run, dataset, method, seed)
        plan = self._plan(path)
        if self.settings.fresh or plan is None or plan["key"] != self._key(dataset, method):
            return False
        done = [(self.run.path / "results" / f"{name}.json").is_file() for name in plan["cells"]]
        if all(done):
            self.outcome.kept += len(done)
        return all(done)

    def _plan(self, path: Path) -> dict[str, Any] | None:
        """A stored plan; ``None`` where there is none. A broken one only costs asking the fitted method again."""
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(plan["key"], str) and all(isinstance(name, str) for name in plan["cells"]):
                return dict(plan)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None

    def _measure(self, bench: Bench, name: str, bar: Any) -> None:
        """Fit one method and measure its cells, those that are missing."""
        key = self._key(bench.dataset, name)
        path = plan_path(self.run, bench.dataset, name, bench.seed)
        plan = self._plan(path)
        placeholder = bench.cell(name, OperatingPoint("fit"))
        try:
            fitted = bench.fitted(name)
            points = list(fitted.operating_points(bench.prepared.task.dev))
        except GeepBenchError:
            raise
        except Exception:  # a plug-in's bug must not take the other cells with it
            self._failed(placeholder, traceback.format_exc())
            return
        self.run.forget_failure(placeholder)
        cells = {bench.cell(name, point): point for point in points}
        if plan is None or plan["key"] != key:
            # Results of other settings must neither pass for these when this run is killed, nor stand beside them.
            for outdated in {*(plan["cells"] if plan else ()), *(self.run.result_path(cell).stem for cell in cells)}:
                self.run.forget_result(outdated)
        write_json(path, {"key": key, "cells": [self.run.result_path(cell).stem for cell in cells]})
        for cell, point in cells.items():
            if not self.settings.fresh and self.run.result_path(cell).is_file():
                self.outcome.kept += 1
                continue
            bar.set_postfix_str(point.name)
            try:
                reference = self._reference(bench)
                start = clock.now()
                measured = self.measure_cell(bench, fitted, point, reference)
                result = build_result(cell, fitted, point, measured, bench.prepared)
                rows = sample_rows(measured, bench.prepared)
            except GeepBenchError:
                raise
            except Exception:  # as above
                self._failed(cell, traceback.format_exc())
                continue
            self.run.save(result, rows)
            self.run.forget_failure(cell)
            self.outcome.measured += 1
            self.outcome.seconds += clock.now() - start
            self.outcome.predicting += measured.predicting

    def _failed(self, cell: Cell, trace: str) -> None:
        self.outcome.failed += 1
        where = self.run.fail(cell, trace)
        print(
            f"{cell.dataset} {cell.method} {cell.point}: {trace.strip().splitlines()[-1]} (see {where}); going on",
            file=sys.stderr,
        )

    def _reference(self, bench: Bench) -> Contender | None:
        """What speed-ups are measured against, if it is among the methods of this run."""
        profile = self.settings.profile
        if profile.reference not in profile.methods:
            return None
        rival = bench.fitted(profile.reference)
        point = rival.operating_points(bench.prepared.task.dev)[0]
        return Contender(rival, replace(point, execution=self.settings.execution), self.settings.dtype)

    def measure_cell(
        self, bench: Bench, fitted: Fitted, point: OperatingPoint, reference: Contender | None
    ) -> Measured:
        """Time one cell next to the reference."""
        return measure(
            Contender(fitted, replace(point, execution=self.settings.execution), self.settings.dtype),
            bench.prepared.test.tokens,
            rounds=self.settings.profile.rounds,
            seed=bench.seed,
            reference=reference,
            reference_name=self.settings.profile.reference,
        )


def build_result(cell: Cell, fitted: Fitted, point: OperatingPoint, measured: Measured, prepared: Prepared) -> Result:
    """The stored form of one measurement."""
    predictions, cost = measured.predictions, fitted.cost
    work, n = predictions.work, len(predictions.exit_layer)
    report = getattr(fitted, "training", None)
    training = None
    if report is not None:
        training = Training(
            seconds=report.seconds,
            steps=report.steps,
            layer_passes=report.layer_passes,
            passes_ratio=report.layer_passes / (report.sample_passes * cost.depth),
            best_epoch=report.best_epoch,
            dev_accuracy=max(report.dev_scores, default=None),
        )
    return Result(
        cell=cell,
        kind="bound" if measured.foresees else registry.get(cell.method).kind,
        synthetic=cell.source == "embedded",
        language=prepared.task.language,
        params=dict(point.params),
        quality=quality(predictions.logits.argmax(1), prepared.test.labels.numpy()),
        cost=Cost(
            flops_linear=cost.flops(work, "linear") / n,
            flops_full=cost.flops(work, "full") / n,
            params=cost.params,
            mean_layers=work.rows("layer") / n,
            mean_heads=work.rows("head") / n,
            depth=cost.depth,
            valid_token_ratio=work.valid_token_ratio(),
        ),
        speed=measured.speed,
        training=training,
        checks=Checks(rounds_agree=measured.rounds_agree),
        exit_histogram=np.bincount(predictions.exit_layer.astype(np.int64), minlength=cost.depth).tolist(),
        peak_memory_bytes=measured.peak_memory_bytes,
        notes=prepared.notes,
        fingerprint=fingerprint(),
    )


def sample_rows(measured: Measured, prepared: Prepared) -> pd.DataFrame:
    """One row per test sample (columns: :data:`harness.results.SAMPLE_COLUMNS`)."""
    predictions, labels = measured.predictions, prepared.test.labels.numpy()
    probabilities = torch.from_numpy(predictions.logits).softmax(-1).numpy()
    label = predictions.logits.argmax(1)
    predicted = predictions.predicted_exit
    return pd.DataFrame(
        {
            "index": np.arange(len(labels), dtype=np.int64),
            "length": prepared.test.tokens.lengths.cpu().numpy().astype(np.int32),
            "label": labels,
            "prediction": label.astype(np.int64),
            "correct": label == labels,
            "confidence": probabilities.max(1).astype(np.float32),
            "exit_layer": (predictions.exit_layer + 1).astype(np.int16),
            "predicted_exit": (np.zeros(len(labels)) if predicted is None else predicted + 1).astype(np.int16),
            "difficulty": prepared.difficulty.astype(np.int8),
        }
    )


def benches(settings: Settings) -> Iterator[Bench]:
    """Every dataset with every seed, for other front ends (pytest suites)."""
    for dataset in settings.profile.datasets:
        for seed in settings.profile.seeds:
            yield Bench(settings, dataset, seed)


