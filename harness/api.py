"""The Python API: run a profile, read results as data frames, compare two runs. The command line is built on it.

::

    import harness

    run = harness.run("quick", datasets="ag_news", methods=["bert", "fastbert"])
    run.results()[["method", "point", "accuracy", "speedup"]]
    run.report()
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pandas as pd

from harness import registry
from harness.contracts import HasRole
from harness.core.errors import ConfigError, MethodError, UnknownNameError, format_error
from harness.deploy.exporting import Export, export
from harness.regression import compare as regression
from harness.results import packed_run
from harness.results.flat_result import flat
from harness.results.packed_run import PackedRun
from harness.results.rows.sample_columns import DEPTH_COLUMNS
from harness.results.run_folder import RunFolder
from harness.results.schema import Result
from harness.running import profile as profiles
from harness.running.cluster.cluster_run import ClusterRun
from harness.running.cluster.preflight import ClusterOptions
from harness.running.cluster.ray_nodes import ray_cluster
from harness.running.grid import Grid, GridOutcome
from harness.running.profile import Override, Profile
from harness.running.run_settings import Settings, make_settings

# Columns of the short table that a notebook shows.
SHOWN = ("dataset", "method", "point", "seed", "accuracy", "mean_layers", "samples_per_s", "speedup")


class Run:
    """A run folder, with its results as data frames.

    Attributes:
        path: the folder.
        outcome: counts of what :func:`run` has just done; ``None`` for a run that was opened.
    """

    def __init__(self, path: Path | str, outcome: GridOutcome | None = None) -> None:
        self.path = Path(path)
        self.outcome = outcome

    def results(self) -> pd.DataFrame:
        """Return one row per measured cell.

        Columns are the cell's coordinates (``dataset``, ``method``, ``point``, ``seed``, ...) and ID (``cell``), ``kind``,
        ``role``, accuracy with its 95 % interval (0..1), cost per sample (``flops_linear``, ``flops_full``,
        ``mean_layers``, ...), time (``samples_per_s`` from ids, ``samples_per_s_from_text``, ``speedup`` over
        ``reference``, ...), latency of single samples in seconds, memory in bytes and seconds of training. Values that were
        not measured are missing, such as times of cells that were not timed. Embedded data is marked ``synthetic``.

        Raises:
            ResultError: the results have another schema version.

        Example:
            >>> run.results().sort_values("speedup").groupby("method").last()  # doctest: +SKIP
        """
        return pd.DataFrame([flat(result) for result in self._results()])

    def samples(
        self,
        method: str | None = None,
        dataset: str | None = None,
        *,
        point: str | None = None,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Return one row per test sample and cell, for the cells that match all arguments given.

        Columns are ``dataset``, ``method``, ``point`` and ``seed``, then those of
        :data:`harness.results.rows.sample_columns.SAMPLE_COLUMNS`: length, label, prediction, confidence, exit layer, ...
        Cells of an oracle also have :data:`harness.results.rows.sample_columns.DEPTH_COLUMNS`, missing (``<NA>``) in other cells.

        Raises:
            UnknownNameError: no cell of this run has that method, dataset, point or seed.
            ResultError: a file is missing, unreadable or not what was measured.

        Example:
            >>> run.samples("fastbert").groupby("exit_layer")["correct"].mean()  # doctest: +SKIP
        """
        folder, tables = RunFolder.open(self.path), []
        cells = [result.cell for result in self._results(folder)]
        for name, wanted in (("method", method), ("dataset", dataset), ("point", point), ("seed", seed)):
            if wanted is not None:
                found = [cell for cell in cells if getattr(cell, name) == wanted]
                if not found:
                    raise UnknownNameError(name, str(wanted), {str(getattr(cell, name)) for cell in cells})
                cells = found
        for cell in cells:
            table = folder.samples(cell)
            # Not all cells have these columns, and bits would be lost in floating-point numbers beside missing values.
            table = table.astype({name: "Int64" for name in DEPTH_COLUMNS if name in table})
            for at, name in enumerate(("dataset", "method", "point", "seed")):
                table.insert(at, name, getattr(cell, name))
            tables.append(table)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def report(self) -> Path:
        """Write the report (tables, figures, page) into the run folder and return the path of its page.

        Raises:
            ResultError: the run has no results, or the folder cannot be written.
            ConfigError: no reporter is installed.
        """
        return Path(reporter("report")(self.path, progress=sys.stderr.isatty()))

    def export(
        self,
        cell: str,
        out: str | Path,
        *,
        data: str | Path | None = None,
        backbone: str | Mapping[str, str] | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Export:
        """Write a measured cell as a model for :func:`harness.load_classifier`, and compare its answers with the stored ones.

        Args:
            cell: its ID, in the column ``cell`` of :meth:`results`.
            out: folder to write, which must not exist.
            data, backbone, settings: as for :func:`run`, if they named folders: results hold no paths.

        Raises:
            GeepBenchError: the cell does not exist or cannot be exported, or its data, backbone or fit cannot be used.

        Example:
            >>> run.export(run.results()["cell"][0], "my-model").agreement.same  # doctest: +SKIP
        """
        return export(
            self.path,
            cell,
            out,
            data=None if data is None else Path(data),
            backbones=_by_language(backbone),
            overrides=_overrides(settings),
        )

    def _results(self, folder: RunFolder | None = None) -> list[Result]:
        folder = folder or RunFolder.open(self.path)
        results = folder.results()
        for message in folder.broken:
            print(message, file=sys.stderr)
        return results

    def __repr__(self) -> str:
        cells = [result.cell for result in self._results()]
        failed = len(RunFolder.open(self.path).failures())
        return (
            f"Run('{self.path}': {len(cells)} cells of {len({cell.method for cell in cells})} methods on "
            f"{len({cell.dataset for cell in cells})} datasets, {failed} failed)"
        )

    def _repr_html_(self) -> str:
        table = self.results()
        short = table[[*SHOWN]].to_html(index=False, float_format="{:.4g}".format) if len(table) else ""
        return f"<p><code>{self!r}</code></p>{short}"


def run(
    profile: str | Path | Profile = "quick",
    *,
    datasets: str | Sequence[str] | None = None,
    methods: str | Sequence[str] | None = None,
    data: str | Path | None = None,
    backbone: str | Mapping[str, str] | None = None,
    seeds: int | Sequence[int] | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    max_train: int | None = None,
    max_dev: int | None = None,
    max_test: int | None = None,
    max_unlabelled: int | None = None,
    max_length: int | None = None,
    rounds: int | None = None,
    workers: int | None = None,
    fit_threads: int | None = None,
    execution: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    tuned: str | Path | Sequence[str | Path] = (),
    fresh: bool = False,
    fit_only: bool = False,
) -> Run:
    """Fit and measure what is missing in a run folder. Call it again to resume.

    Args:
        profile: a name (``geep-bench list profiles``), the path of a TOML file, or a :class:`Profile`.
        datasets: names; default: the profile's.
        methods: names of methods and variants; default: the profile's.
        data: folder of local data, ``<data>/<dataset>/{train,dev,test}.{parquet,csv,tsv,jsonl}``.
        backbone: a folder, a hub id or ``"embedded"`` for both languages, or one per language: ``{"en": ..., "zh": ...}``.
        seeds: training seeds.
        device: ``"cpu"`` or ``"cuda"``; default: CUDA if there is a device.
        out: the run folder; default ``runs/<profile>``.
        max_train, max_dev, max_test: maximum number of rows (stratified).
        max_unlabelled: maximum number of texts without labels, for methods that use them.
        max_length: tokens per sample, at most.
        rounds: timed passes per cell.
        workers: processes that fit methods at the same time, on a CPU.
        fit_threads: threads of every fit, on a CPU.
        execution: how predictions are run, e.g. ``{"batch_size": 8}``; keys of the profile's table ``execution``.
        settings: settings of methods, e.g. ``{"tinybert": {"augment": 2}, "training": {"epochs": 1}}``. A new name with
            ``like`` makes a variant, which is measured, too.
        tuned: files of ``suites.studies.search``: train with the winners; ``settings`` replace them.
        fresh: fit and measure again what exists already.
        fit_only: fit and cache all methods, and measure nothing.

    Returns:
        The run. Cells that failed are counted in ``Run.outcome``; the run folder holds the reasons.

    Raises:
        GeepBenchError: the input cannot be used; finished cells stay.

    Example:
        >>> harness.run("quick", methods=["bert", "geep"], settings={"geep": {"epochs": 2}})  # doctest: +SKIP
    """
    chosen = make_settings(
        profile,
        out=None if out is None else Path(out),
        data=None if data is None else Path(data),
        device=device,
        fresh=fresh,
        tuned=[Path(one) for one in ([tuned] if isinstance(tuned, str | Path) else tuned)],
        overrides=_overrides(settings),
        backbones=_by_language(backbone),
        execution=execution,
        datasets=_list(datasets),
        methods=_list(methods),
        seeds=_list(seeds),
        max_train=max_train,
        max_dev=max_dev,
        max_test=max_test,
        max_unlabelled=max_unlabelled,
        max_length=max_length,
        rounds=rounds,
        workers=workers,
        fit_threads=fit_threads,
    )
    return execute(chosen, fit_only=fit_only)


def execute(settings: Settings, *, fit_only: bool = False, cluster: ClusterOptions | None = None) -> Run:
    """Carry out complete settings, see :func:`run`; on a cluster, if there is one."""
    if cluster is not None:
        with ray_cluster(cluster.address) as nodes:
            return Run(settings.out, ClusterRun(settings, cluster, nodes).execute(fit_only=fit_only))
    grid = Grid(settings)
    return Run(settings.out, grid.fit() if fit_only else grid.execute())


def forecast_on(settings: Settings, cluster: ClusterOptions) -> str:
    """Return what a run on a cluster would do, as text; nothing is fitted or measured."""
    with ray_cluster(cluster.address) as nodes:
        return ClusterRun(settings, cluster, nodes).forecast()


def open_run(path: str | Path) -> Run:
    """Open an existing run folder.

    Raises:
        ResultError: there is no run.

    Example:
        >>> harness.open_run("runs/quick").results()  # doctest: +SKIP
    """
    return Run(RunFolder.open(path).path)


def compare(
    base: Run | str | Path,
    new: Run | str | Path,
    *,
    margin: float | None = None,
    slower: float | None = None,
) -> regression.Comparison:
    """Compare two runs: accuracy on the same samples, FLOPs, layers and speed-up.

    Args:
        base: a run, a run folder or a packed run (``geep-bench pack``).
        new: the same.
        margin: accuracy (0..1) that may be lost beyond chance; default 0.005, and 0.03 between different machines.
        slower: time that may be added relative to the reference (0..1); default 0.05.

    Returns:
        Differences by cell and by method; ``alarms`` lists regressions and what could not be compared, one line each.

    Raises:
        ResultError: a run cannot be read, or the runs have no cell in common.

    Example:
        >>> harness.compare("suites/expected/quick.json", run).alarms  # doctest: +SKIP
    """
    limits = regression.Limits()
    if margin is not None:
        limits = replace(limits, margin=margin, margin_elsewhere=margin)
    if slower is not None:
        limits = replace(limits, slower=slower)
    return regression.compare(_packed(base), _packed(new), limits)


def list_methods(profile: str | None = None) -> pd.DataFrame:
    """Return all registered methods, and the variants that profiles define.

    Args:
        profile: list the variants of this profile only; default: of all installed profiles.

    Returns:
        Columns ``name``, ``kind`` (``"method"``, ``"control"``, ``"bound"``, ``"variant"`` or, for a plug-in that cannot be
        imported, ``"broken"``), ``role`` (empty for most) and ``description``.

    Example:
        >>> harness.list_methods().query("kind == 'method'")  # doctest: +SKIP
    """
    rows: list[tuple[str, str, str, str]] = []
    for name in registry.names():
        try:
            method = registry.get(name)
        except MethodError as error:
            rows.append((name, "broken", "", format_error(error)))
        else:
            role = method.role if isinstance(method, HasRole) else ""
            rows.append((name, method.kind, role, (type(method).__doc__ or "").strip().partition("\n")[0]))
    for chosen in [profiles.load(name) for name in ([profile] if profile else profiles.names())]:
        for name in chosen.variants:
            own = ", ".join(f"{key} = {json.dumps(value)}" for key, value in chosen.method[name].items())
            rows.append((name, "variant", "", f"{own} (profile {chosen.name})"))
    return pd.DataFrame(rows, columns=["name", "kind", "role", "description"])


def reporter(name: str) -> Any:
    """Return a function of the entry-point group ``geep.reporters``: ``report``, ``summary`` or ``comparison``.

    Raises:
        ConfigError: none of that name is installed.
    """
    points = {point.name: point for point in entry_points(group="geep.reporters")}
    if name not in points:
        raise ConfigError(
            f"no reporter '{name}' is installed: install the project with 'pip install -e .', and delete an older "
            "geep_bench.egg-info from this folder"
        )
    return points[name].load()


def _by_language(backbone: str | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """A backbone for both languages as one per language."""
    return {"en": backbone, "zh": backbone} if isinstance(backbone, str) else backbone


def _overrides(settings: Mapping[str, Mapping[str, Any]] | None) -> list[Override]:
    """Settings by method as table, key and value.

    Raises:
        ConfigError: those of a method are no table.
    """
    for table, own in (settings or {}).items():
        if not isinstance(own, Mapping):
            raise ConfigError(
                f'settings = {{"{table}": {own!r}}}: give a table per method: {{"bert": {{"epochs": 2}}}}'
            )
    return [(table, key, value) for table, own in (settings or {}).items() for key, value in own.items()]


def _list(value: Any) -> list[Any] | None:
    """A single name or number as a list."""
    return None if value is None else [value] if isinstance(value, str | int) else list(value)


def _packed(source: Run | str | Path) -> PackedRun:
    return packed_run.load(source.path if isinstance(source, Run) else Path(source))
