"""One view of a run, from which every format is rendered.

Data flows one way: run folder -> :class:`View` -> tables, figures, page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, TypeVar

import pandas as pd

from harness.core.errors import ResultError
from harness.core.names import clean
from harness.measure.statistics import calibration_error
from harness.results.run_folder import RunFolder
from reports.analysis.caveats import fingerprint_facts, gather_caveats, set_aside
from reports.analysis.cell_settings import ROW_SETTING, shared_facts, values_of, varying_settings
from reports.analysis.conditions import find_conditions, unlike_sets
from reports.analysis.curves import Curve, measure_curves
from reports.analysis.decision.answer_loss import StoredAnswers
from reports.analysis.decision.deciding import Decision, Requirements, decide
from reports.analysis.depth_worth import DepthRow, depth_rows
from reports.analysis.result_rows import ResultRow, average_over_seeds, with_noise, with_pace, with_ratios
from reports.analysis.row_marks import marks_of
from reports.analysis.run_contents import (
    SampleReader,
    SearchRow,
    VariantRow,
    lost_cells,
    read_compared,
    read_datasets,
    read_families,
    read_searches,
    read_train_rows,
    read_variants,
    usable_results,
)
from reports.analysis.set_means import SetMeans, means_over_sets
from reports.analysis.verdicts.answers_before import BeforeRow, answers_before
from reports.analysis.verdicts.area_ranks import AreaRank, rank_areas
from reports.analysis.verdicts.control_tests import ControlTest, compare_with_controls
from reports.analysis.verdicts.equal_cost import SetRanks, rank_over_sets
from reports.analysis.verdicts.equal_cost_tests import EqualCostTest, compare_at_equal_cost
from reports.analysis.verdicts.layer_answers import Reachable, reachable
from reports.analysis.verdicts.pooled_verdicts import PooledTest, pool
from reports.analysis.verdicts.prediction_quality import PredictorRow, predictor_quality
from reports.analysis.verdicts.rival_tests import RivalTest, compare_with_rivals

KIND_ORDER = {"method": 0, "control": 1, "bound": 2}
R = TypeVar("R", bound=ResultRow)
D = TypeVar("D", bound=ResultRow | AreaRank | SetRanks | EqualCostTest | DepthRow)


@dataclass(frozen=True)
class Group:
    """One dataset as shown; rows of synthetic and of real data never share a group.

    Attributes:
        dataset: its name.
        synthetic: whether its numbers come from embedded data.
        language: ``"en"``, ``"zh"``, ...
        label: for readers.
        slug: for file names, unique in the run; contains ``synthetic`` where the data is.
        facts: settings that all of its rows share, for captions.
    """

    dataset: str
    synthetic: bool
    language: str
    label: str
    slug: str
    facts: str


class Level(NamedTuple):
    """Samples of one true difficulty: how many, accuracy (0..1), mean exit layer (1..depth)."""

    n: int
    accuracy: float
    exit_layer: float


@dataclass(frozen=True, kw_only=True)
class DifficultyRow(ResultRow):
    """A row by true difficulty: level -> its samples."""

    levels: dict[int, Level]


@dataclass(frozen=True)
class View:
    """Everything that a report shows.

    Attributes:
        name: name of the run folder.
        groups: the datasets, in the order shown.
        rows: one row per group, method, point and setting: means over seeds, in the order shown.
        cells: number of results behind them.
        difficulty: rows by true difficulty, of synthetic data.
        verdicts: comparisons of predicting methods with their controls, per dataset.
        pooled: the same over all datasets.
        bounds: what a perfect predictor could reach.
        predictors: rows that predict exits.
        before: rows that can answer samples before layer 1.
        rivals: comparisons of methods with their rivals.
        curves: curves of accuracy against FLOPs.
        areas: early exits by the area under accuracy over layers, over all datasets.
        set_means: methods at their points, on average over sets.
        ranks: methods at equal cost on every set, with average ranks over sets.
        equal_cost: pairs of methods at equal cost, over all sets and seeds.
        depths: accuracy of the heads after every layer, per set.
        train_rows: dataset -> most train rows, as far as recorded.
        families: method -> the method that it is like, where only the number of layers differs.
        varying: settings that differ inside a group and are therefore shown as columns.
        fingerprint: (key, value) of the machine and versions.
        caveats: what a reader must know before using a number.
        warnings: how many of them come first and must not be missed: cells that do not belong together, sets that were not measured
            in the same way, and results set aside.
        lost: cells that a dataset should have but has not, by its name as in files.
        variants: the variants among the methods.
        searches: settings that were tried for the methods before the run.
        decisions: which cell to deploy, for all sets together and for every set.
    """

    name: str
    groups: list[Group]
    rows: list[ResultRow]
    cells: int
    difficulty: list[DifficultyRow]
    verdicts: list[ControlTest]
    pooled: list[PooledTest]
    bounds: list[Reachable]
    predictors: list[PredictorRow]
    before: list[BeforeRow]
    rivals: list[RivalTest]
    curves: list[Curve]
    areas: list[AreaRank]
    set_means: list[SetMeans]
    ranks: list[SetRanks]
    equal_cost: list[EqualCostTest]
    depths: list[DepthRow]
    train_rows: dict[str, int]
    families: dict[str, str]
    varying: list[str]
    fingerprint: list[tuple[str, str]]
    caveats: list[str]
    warnings: int
    lost: dict[str, list[str]]
    variants: list[VariantRow]
    searches: list[SearchRow]
    decisions: list[Decision]

    @property
    def synthetic(self) -> bool:
        """Whether any number comes from embedded data."""
        return any(group.synthetic for group in self.groups)

    def of(self, group: Group) -> list[ResultRow]:
        """Return the rows of one group."""
        return of_group(self.rows, group)

    def setting_of(self, row: ResultRow) -> str:
        """Return the settings that tell a row from its neighbours, as text."""
        return " ".join(str(value) for value in values_of(row, self.varying) if value is not None)

    def lost_of(self, group: Group) -> list[str]:
        """Return the cells of a dataset that were broken or failed."""
        return self.lost.get(re.sub(r"[^\w.=+-]+", "_", group.dataset), [])

    def noise_of(self, group: Group) -> str:
        """Return the A/A band of a dataset, per device where there are several; empty where none is known."""
        rows = self.of(group)
        bands = {(row.device, row.conditions): row.noise for row in rows if row.noise is not None}
        devices = len({row.device for row in rows}) > 1
        return ", ".join(
            f"{band}{f' on {device}' * devices}{f' under {conditions}' * bool(conditions)}"
            for (device, conditions), band in bands.items()
        )


def of_group(rows: Sequence[R], group: Group) -> list[R]:
    """Return those of some rows that belong to one group."""
    return [row for row in rows if row.slug == group.slug]


def by_data(rows: Sequence[D]) -> list[tuple[bool, list[D]]]:
    """Return real and synthetic rows apart, as (whether synthetic, rows); a kind without rows is left out."""
    halves = [(synthetic, [row for row in rows if row.synthetic == synthetic]) for synthetic in (False, True)]
    return [(synthetic, half) for synthetic, half in halves if half]


def file_slug(text: str) -> str:
    """Return ``text`` as a safe part of a file name, at most 120 bytes of it."""
    safe = re.sub(r"[^\w.=+-]+", "_", text).strip("._") or "unnamed"
    # File systems count bytes, and a Chinese character has three.
    return safe.encode()[:120].decode(errors="ignore")


def build_view(run_path: Path | str, *, samples: bool = True, asked: Requirements | None = None) -> View:
    """Read a run folder.

    Args:
        run_path: the run folder.
        samples: also read the per-sample rows, for difficulty and paired tests.
        asked: limits of a cell to deploy; also read rows that older results need for that.

    Raises:
        ResultError: no run there, no results in it, or results of another schema version.
    """
    run = RunFolder.open(run_path)
    results, doubts = usable_results(run)
    if not results:
        raise ResultError(_explain_empty(run))
    reader = SampleReader(run, results)
    conditions = find_conditions(run, results)
    rows = average_over_seeds(results, conditions.names)
    groups = _groups(rows)
    by_name = {(group.dataset, group.synthetic): group for group in groups}
    rows = [
        replace(row, slug=group.slug, label=group.label)
        for row in rows
        for group in [by_name[row.dataset, row.synthetic]]
    ]
    place = {group.slug: number for number, group in enumerate(groups)}
    rows = sorted(with_pace(with_noise(with_ratios(rows))), key=lambda row: (place[row.slug], *_order(row)))
    rows = _with_marks(rows, reader if samples else None)
    varying = varying_settings(rows)
    warnings = [*conditions.apart, *unlike_sets(results), *set_aside(run)]
    verdicts = compare_with_controls(rows, reader.read) if samples else []
    bounds = reachable(rows, reader.read) if samples else []
    families = read_families(run)
    return View(
        name=clean(run.path.resolve().name),
        groups=groups,
        rows=rows,
        cells=len(results),
        difficulty=_difficulty(rows, reader) if samples else [],
        verdicts=verdicts,
        pooled=pool(verdicts),
        bounds=bounds,
        predictors=predictor_quality(rows, reader.read) if samples else [],
        before=answers_before(rows, reader.read) if samples else [],
        rivals=compare_with_rivals(rows, reader.read, read_compared(run)) if samples else [],
        curves=measure_curves(rows, varying),
        areas=rank_areas(rows, reader.read) if samples else [],
        set_means=means_over_sets(rows, read_datasets(run)),
        ranks=rank_over_sets(rows, families, read_datasets(run)),
        equal_cost=compare_at_equal_cost(rows, reader.read, families, read_compared(run)) if samples else [],
        depths=depth_rows(run, rows, bounds),
        train_rows=read_train_rows(run),
        families=families,
        varying=varying,
        fingerprint=fingerprint_facts([result.fingerprint for result in results]),
        lost=lost_cells(run, results),
        variants=read_variants(run, {row.method for row in rows}),
        searches=read_searches(run),
        decisions=decide(
            rows, StoredAnswers(results, reader.read if samples or asked else None), asked or Requirements()
        ),
        warnings=len(warnings),
        caveats=[
            *warnings,
            *gather_caveats(run, results, rows, reader.problems if samples else (), doubts),
            *conditions.unchecked,
        ],
    )


def _explain_empty(run: RunFolder) -> str:
    """Return why a run has nothing to report, and what to do."""
    hints = [f"{len(run.broken)} broken result(s) were set aside"] if run.broken else []
    if failed := len(list((run.path / "failures").glob("*.json"))):
        hints.append(f"{failed} cell(s) failed, see {run.path / 'failures'}")
    why = f" ({'; '.join(hints)})" if hints else ""
    return f"no results in {run.path}{why}: measure first with 'geep-bench run --profile quick --out {run.path}'"


def _groups(rows: Sequence[ResultRow]) -> list[Group]:
    """Return the datasets of a run: real before synthetic, then by language and name."""
    found: dict[tuple[str, bool], str] = {}
    for synthetic, language, dataset in sorted({(row.synthetic, row.language, row.dataset) for row in rows}):
        found.setdefault((dataset, synthetic), language)
    groups: list[Group] = []
    slugs: set[str] = set()
    for (dataset, synthetic), language in found.items():
        slug = base = file_slug(dataset) + ("-synthetic" if synthetic else "")
        number = 2
        while slug.lower() in slugs:
            slug, number = f"{base}-{number}", number + 1
        slugs.add(slug.lower())
        label = f"{dataset} (synthetic)" if synthetic else dataset
        mine = [row for row in rows if (row.dataset, row.synthetic) == (dataset, synthetic)]
        groups.append(Group(dataset, synthetic, language, label, slug, shared_facts(mine)))
    return groups


def _order(row: ResultRow) -> tuple[object, ...]:
    return (
        KIND_ORDER.get(row.kind, 3),
        not row.is_reference,
        row.method,
        row.variant,
        -(row.mean_layers or 0.0),
        row.point,
        *map(str, values_of(row, ROW_SETTING)),
    )


def _with_marks(rows: Sequence[ResultRow], reader: SampleReader | None) -> list[ResultRow]:
    """Return the rows with their marks; without a reader missing per-sample rows are not looked for."""
    seeds: dict[str, int] = {}
    for row in rows:
        seeds[row.slug] = max(seeds.get(row.slug, 0), row.seeds)
    found = []
    for row in rows:
        missing = reader and not reader.stripped and any(reader.read(cell) is None for cell in row.cells)
        row = replace(row, samples_missing=bool(missing), partial=row.left_out or row.seeds < seeds[row.slug])
        if row.calibration_error is None and reader:
            row = replace(row, calibration_error=_calibration(row, reader))
        found.append(replace(row, marks=marks_of(row)))
    return found


def _calibration(row: ResultRow, reader: SampleReader) -> float | None:
    """Return the calibration error of results that were stored before they had one, mean over seeds; None without rows."""
    frames = [frame for cell in row.cells if (frame := reader.read(cell)) is not None]
    found = [calibration_error(one["confidence"].to_numpy(), one["correct"].to_numpy()) for one in frames]
    return fmean(found) if found else None


def _difficulty(rows: Sequence[ResultRow], reader: SampleReader) -> list[DifficultyRow]:
    """Return accuracy and mean exit layer per true difficulty; unknown difficulty (-1) is left out."""
    found = []
    for row in rows:
        frames = [frame for cell in row.cells if row.synthetic and (frame := reader.read(cell)) is not None]
        if not frames:
            continue
        known = pd.concat(frames) if len(frames) > 1 else frames[0]
        levels = {}
        for level in sorted(set(known["difficulty"].tolist()) - {-1}):
            part = known[known["difficulty"] == level]
            levels[level] = Level(len(part), float(part["correct"].mean()), float(part["exit_layer"].mean()))
        if levels:
            found.append(DifficultyRow(**vars(row), levels=levels))
    return found
