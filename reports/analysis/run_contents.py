"""What a run folder contains: usable and doubtful results, per-sample rows, missing cells, and the tables of its profile."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.core.errors import ResultError
from harness.core.names import clean, clean_all
from harness.core.text_formats import read_json
from harness.results.rows.sample_columns import DEPTH_COLUMNS
from harness.results.run_folder import RunFolder
from harness.results.schema import Cell, Result
from harness.results.search_record import SearchRecord, Trial
from harness.results.stored import read_result


def cell_name(cell: Cell) -> str:
    """Return the name of a cell for use in a sentence."""
    return f"{cell.method} {cell.point} on {cell.dataset}, seed {cell.seed}"


def first_few(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return at most ``most`` names and how many more there are."""
    last = f"and {len(names) - most} more"
    return separator.join(names[:most]) + (f"{';' if ';' in separator else ''} {last}" if len(names) > most else "")


def usable_results(run: RunFolder) -> tuple[list[Result], list[str]]:
    """Return every usable result, one per cell, and a sentence about each doubtful one.

    Raises:
        ResultError: a result of another schema version.
    """
    by_cell: dict[Cell, list[Result]] = {}
    for result in run.results():
        by_cell.setdefault(result.cell, []).append(result)
    problems: list[str] = []
    kept = []
    for cell, same in by_cell.items():
        kept.append(same[0] if len(same) == 1 else _choose(run, cell, same, problems))
    for result in kept:
        if names := _not_finite(result):
            problems.append(
                f"Not a number in {cell_name(result.cell)}: {first_few(names, 6)}; these values are shown as missing."
            )
    return kept, problems


def _choose(run: RunFolder, cell: Cell, same: Sequence[Result], problems: list[str]) -> Result:
    """Return one of several results of one cell: the one in the file named after the cell, to which the samples belong."""
    path = run.result_path(cell)
    texts = [result.model_dump_json() for result in same]
    try:
        own = read_result(path).result.model_dump_json()
        at = texts.index(own)
        why = f"the one in {path.name} is used"
    except (OSError, ValueError):  # not JSON, not valid, or not among them
        at, why = 0, f"none of them is called {path.name}; the first by name is used"
    differ = "that differ" if len(set(texts)) > 1 else "that are equal"
    problems.append(f"{len(same)} results {differ} are stored for {cell_name(cell)}: {why}; delete the others.")
    return same[at]


def _not_finite(result: Result) -> list[str]:
    """Return the names of the metrics that are NaN or infinite."""
    parts = {"quality", "cost", "speed", "checks", "latency", "speedup_factors", "unseen_tokens"}
    leaves = _leaves(result.model_dump(include=parts))
    return list(dict.fromkeys(name for name, value in leaves if not math.isfinite(value)))


def _leaves(data: object, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(data, float):
        yield name, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, str(key))
    elif isinstance(data, list):
        for value in data:
            yield from _leaves(value, name)


def lost_cells(run: RunFolder, results: Sequence[Result]) -> dict[str, list[str]]:
    """Return the cells that were broken or failed and have no result: dataset, as in file names -> what is missing."""
    there = {run.result_path(result.cell).stem for result in results}
    lost: dict[str, list[str]] = defaultdict(list)
    for folder, why in (("set-aside", "broken, set aside"), ("failures", "failed")):
        for path in sorted((run.path / folder).glob("*.json")):
            parts = path.stem.split("--")
            if path.stem not in there and len(parts) >= 5:
                lost["--".join(parts[:-4])].append(clean(f"{parts[-4]} {parts[-3]}, {parts[-2]} ({why})"))
    return dict(lost)


def lost_note(cells: Sequence[str]) -> list[str]:
    """Return a footnote that names the rows missing from a table."""
    return [f"Missing from this table: {first_few(cells, 8, '; ')}."] if cells else []


def _profile_table(run: RunFolder, key: str) -> Mapping[str, object]:
    """Return a table of the run's profile; empty where ``run.json``, which is informative, does not have it."""
    try:
        table = clean_all(read_json(run.path / "run.json"))["profile"][key]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return table if isinstance(table, Mapping) else {}


def read_compared(run: RunFolder) -> dict[str, list[str]]:
    """Return method -> others that the run's profile compares it with; a variant always with the method it is based on."""
    compared: dict[str, list[str]] = defaultdict(list)
    for method, others in _profile_table(run, "compare").items():
        compared[str(method)] += map(str, others) if isinstance(others, list) else []
    for method, table in _profile_table(run, "method").items():
        if isinstance(table, Mapping) and "like" in table:
            compared[str(method)].append(str(table["like"]))
    return dict(compared)


def read_datasets(run: RunFolder) -> list[str]:
    """Return the datasets that the run's profile names; empty where ``run.json`` does not say."""
    try:
        names = clean_all(read_json(run.path / "run.json"))["profile"]["datasets"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def read_train_rows(run: RunFolder) -> dict[str, int]:
    """Return dataset -> most train rows that the run's profile allows; empty where ``run.json`` does not say."""
    try:
        profile = clean_all(read_json(run.path / "run.json"))["profile"]
        own = {name: table.get("max_train") for name, table in profile.get("rows", {}).items()}
        limits = {name: own.get(name) or profile.get("max_train") for name in profile["datasets"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {str(name): limit for name, limit in limits.items() if isinstance(limit, int)}


def read_families(run: RunFolder) -> dict[str, str]:
    """Return variant -> the method that it is like, for those that differ from it in nothing but their number of layers."""
    tables = _profile_table(run, "method")
    same = {"like", "layers", "needs", "seeds"}
    return {
        name: str(table["like"])
        for name, table in tables.items()
        if isinstance(table, Mapping) and "layers" in table and "like" in table and set(table) <= same
    }


@dataclass(frozen=True)
class VariantRow:
    """A variant of a method: the method that it is ``like``, its own ``settings``, and what it ``needs``, as text."""

    method: str
    like: str
    settings: str
    needs: str


def read_variants(run: RunFolder, methods: Collection[str]) -> list[VariantRow]:
    """Return the variants of the run's profile that are among ``methods``."""
    found = []
    for name, table in _profile_table(run, "method").items():
        if name in methods and isinstance(table, Mapping) and "like" in table:
            own = {key: value for key, value in table.items() if key not in ("like", "needs")}
            settings = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in own.items())
            found.append(VariantRow(name, str(table["like"]), settings, _needs(table.get("needs"))))
    return found


@dataclass(frozen=True)
class SearchRow:
    """Settings that a search tried for a method: means over datasets and seeds.

    Attributes:
        settings: as text.
        datasets: whose dev splits were used, as text.
        fits: trainings behind the row.
        score: on dev, 0..1; None if a training failed.
        steps: of the optimiser, in one training.
        at_limit: trainings that kept the last epoch allowed.
        chosen: whether the run trains with these settings.
        failed: why they could not win; empty if they could.
    """

    method: str
    settings: str
    datasets: str
    fits: int
    score: float | None
    steps: float
    at_limit: int
    chosen: bool
    failed: str


def read_searches(run: RunFolder) -> list[SearchRow]:
    """Return what the searches tried whose winners the run trains with (``--tuned``); none without a readable record."""
    try:
        given = clean_all(read_json(run.path / "run.json")).get("searches", [])
        records = [SearchRecord.model_validate(one) for one in given]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    rows = []
    for record in records:
        groups: dict[tuple[str, str], list[Trial]] = {}
        for trial in record.trials:
            text = ", ".join(f"{key} = {json.dumps(value)}" for key, value in trial.settings.items())
            groups.setdefault((trial.method, text), []).append(trial)
        for (method, text), trials in groups.items():
            scores = [trial.score for trial in trials if trial.score is not None]
            rows.append(
                SearchRow(
                    method,
                    text,
                    ", ".join(record.datasets),
                    len(trials),
                    sum(scores) / len(scores) if len(scores) == len(trials) else None,
                    sum(trial.steps for trial in trials) / len(trials),
                    sum(trial.best_epoch == trial.epochs for trial in trials),
                    trials[0].settings == record.best.get(method),
                    "; ".join(dict.fromkeys(trial.failed for trial in trials if trial.failed)),
                )
            )
    return rows


def _needs(given: object) -> str:
    named = [f"{name} as {role}" for role, name in given.items()] if isinstance(given, Mapping) else given
    return ", ".join(map(str, named)) if isinstance(named, list) else ""


# What a report computes from rows; "index" is the row of the test split.
COLUMNS = ("label", "prediction", "correct", "confidence", "exit_layer", "predicted_exit", "difficulty")
Reader = Callable[[Cell], "pd.DataFrame | None"]


class SampleReader:
    """Rows of cells; a file that cannot be used becomes a problem to report and does not stop the report.

    Attributes:
        problems: one sentence each, in the order found.
        stripped: the run has no per-sample rows at all, like published runs: one problem instead of one per cell.
    """

    def __init__(self, run: RunFolder, results: Sequence[Result] = ()) -> None:
        self.run = run
        self.problems: list[str] = []
        self.stripped = bool(results) and not any(run.has_rows(result.cell) for result in results)
        if self.stripped:
            self.problems.append(
                "they were removed from this run; paired tests, predictor quality and difficulty are missing."
            )
        self._read: dict[Cell, pd.DataFrame | None] = {}

    def read(self, cell: Cell) -> pd.DataFrame | None:
        """Return :data:`COLUMNS` indexed by test row, in its order; None where there is no usable file.

        Rows of a cell that knows the answers of every exit also have :data:`harness.results.rows.sample_columns.DEPTH_COLUMNS`.
        """
        if cell not in self._read:
            self._read[cell] = None if self.stripped else self._load(cell)
        return self._read[cell]

    def _load(self, cell: Cell) -> pd.DataFrame | None:
        if fault := self.run.without_rows.get(cell):
            self.problems.append(f"{fault}: run the cell again")
            return None
        try:
            frame = self.run.samples(cell)
            frame = frame[["index", *COLUMNS, *(name for name in DEPTH_COLUMNS if name in frame)]]
        except ResultError as error:  # removed or damaged since the results were read
            self.problems.append(str(error))
            return None
        frame = frame.astype({"correct": bool}).set_index("index")
        return frame if frame.index.is_monotonic_increasing else frame.sort_index()


def paired_samples(
    ours: Sequence[Cell], theirs: Sequence[Cell], read: Reader
) -> dict[int, tuple[pd.DataFrame, pd.DataFrame]]:
    """Return seed -> rows of both sides over the same test rows, for every seed that both have and that can be read."""
    by_seed = {cell.seed: read(cell) for cell in theirs}
    found = {}
    for cell in ours:
        mine, other = (read(cell), by_seed[cell.seed]) if cell.seed in by_seed else (None, None)
        if mine is None or other is None:
            continue
        if not mine.index.equals(other.index):
            common = mine.index.intersection(other.index)
            mine, other = mine.loc[common], other.loc[common]
        if len(mine):
            found[cell.seed] = mine, other
    return found
