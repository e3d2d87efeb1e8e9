"""One view of a run: pandas frames and facts, from which every format is rendered.

Data flows one way: run folder -> :class:`View` -> tables, figures, page.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from harness.errors import ResultError
from harness.results import Cell, Result
from harness.store import Run
from reports.caveats import fingerprint_facts, gather_caveats
from reports.coordinates import SAME_REFERENCE, SETTING, facts, varying
from reports.verdicts import compare_with_controls

KIND_ORDER = {"method": 0, "control": 1, "bound": 2}
FALLBACK_REFERENCE = "bert"


@dataclass(frozen=True)
class Group:
    """One dataset as shown: rows of synthetic and of real data never share a group.

    Attributes:
        dataset: its name.
        synthetic: whether its numbers come from embedded data.
        language: ``"en"``, ``"zh"``, ...
        label: for people.
        slug: for file names, unique in the run; carries ``synthetic`` where due.
        facts: coordinates that all of its rows share, for captions.
    """

    dataset: str
    synthetic: bool
    language: str
    label: str
    slug: str
    facts: str


@dataclass
class View:
    """Everything a report says.

    Attributes:
        name: name of the run folder.
        groups: the datasets, in the order shown.
        cells: one row per result.
        rows: one row per (group, method, point, setting): means over seeds, in the order shown.
        difficulty: one row per (row, true difficulty): ``n``, ``accuracy``, ``exit_layer`` (mean, 1..depth).
        verdicts: one row per comparison of a predicting method with a control (:mod:`reports.verdicts`).
        varying: coordinates that differ inside a group and are therefore shown as columns.
        fingerprint: (key, value) of the machine and versions.
        caveats: what a reader must know before believing a number.
    """

    name: str
    groups: list[Group]
    cells: pd.DataFrame
    rows: pd.DataFrame
    difficulty: pd.DataFrame
    verdicts: pd.DataFrame
    varying: list[str]
    fingerprint: list[tuple[str, str]] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)

    @property
    def synthetic(self) -> bool:
        """Whether any number comes from embedded data."""
        return any(group.synthetic for group in self.groups)

    def of(self, group: Group, frame: str = "rows") -> pd.DataFrame:
        """The part of a frame that belongs to one group."""
        whole: pd.DataFrame = getattr(self, frame)
        return whole[whole["slug"] == group.slug] if len(whole) else whole

    def records(self, group: Group) -> list[dict[str, Any]]:
        """The rows of one group as dictionaries."""
        return [{str(key): value for key, value in record.items()} for record in self.of(group).to_dict("records")]


class SampleReader:
    """Per-sample rows of cells; an unreadable file becomes a caveat, not the end of the report."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.problems: list[str] = []
        self._kept: dict[Cell, pd.DataFrame | None] = {}

    def read(self, cell: Cell) -> pd.DataFrame | None:
        """``correct``, ``exit_layer`` and ``difficulty`` indexed by test row, or None where there is no usable file."""
        if cell not in self._kept:
            self._kept[cell] = self._load(cell)
        return self._kept[cell]

    def _load(self, cell: Cell) -> pd.DataFrame | None:
        columns = ["index", "correct", "exit_layer", "difficulty"]
        try:
            frame = self.run.samples(cell)
        except ResultError as error:
            self.problems.append(str(error))
            return None
        if missing := [name for name in columns if name not in frame]:
            self.problems.append(f"{self.run.samples_path(cell)} has no column {missing[0]}: run the cell again")
            return None
        return frame[columns].set_index("index")


def file_slug(text: str) -> str:
    """``text`` as a safe part of a file name, at most 120 bytes of it."""
    safe = re.sub(r"[^\w.=+-]+", "_", text).strip("._") or "unnamed"
    # File systems count bytes, and a Chinese character has three.
    return safe.encode()[:120].decode(errors="ignore")


def build_view(run_path: Path | str, *, samples: bool = True) -> View:
    """Read a run folder.

    Args:
        run_path: the run folder.
        samples: also read the per-sample rows, for difficulty and verdicts.

    Raises:
        ResultError: no run there, no results in it, or results of another schema version.
    """
    run = Run.open(run_path)
    results = run.results()
    if not results:
        raise ResultError(_explain_empty(run))
    reader = SampleReader(run)
    rows, members = _rows(results)
    groups = _groups(rows)
    slugs = {(g.dataset, g.synthetic): g.slug for g in groups}
    labels = {(g.dataset, g.synthetic): g.label for g in groups}
    for row in rows:
        key = (row["dataset"], row["synthetic"])
        row["slug"], row["label"] = slugs[key], labels[key]
    _add_ratios(rows)
    order = sorted(range(len(rows)), key=lambda i: _order(rows[i], groups))
    rows, members = [rows[i] for i in order], [members[i] for i in order]
    difficulty = _difficulty(rows, members, reader) if samples else []
    verdicts = compare_with_controls(rows, members, reader.read) if samples else []
    return View(
        name=run.path.resolve().name,
        groups=groups,
        cells=pd.DataFrame([_flat(result) for result in results]),
        rows=pd.DataFrame(rows),
        difficulty=pd.DataFrame(difficulty),
        verdicts=pd.DataFrame(verdicts),
        varying=varying(rows),
        fingerprint=fingerprint_facts([result.fingerprint for result in results]),
        caveats=gather_caveats(run, results, rows, reader.problems),
    )


def _explain_empty(run: Run) -> str:
    """Why a run has nothing to report, and what to do."""
    hints = [f"{len(run.broken)} broken result(s) were set aside"] if run.broken else []
    if failed := len(list((run.path / "failures").glob("*.json"))):
        hints.append(f"{failed} cell(s) failed, see {run.path / 'failures'}")
    why = f" ({'; '.join(hints)})" if hints else ""
    return f"no results in {run.path}{why}: measure first with 'geep-bench run --profile quick --out {run.path}'"


def _flat(result: Result) -> dict[str, Any]:
    """One result as one flat row."""
    data: dict[str, Any] = {**result.cell.model_dump(), "kind": result.kind, "synthetic": result.synthetic}
    data.update(language=result.language, **result.quality.model_dump(), **result.cost.model_dump())
    speed = result.speed.model_dump()
    phases = speed.pop("phases")
    data.update(speed, phases=phases, rounds_agree=result.checks.rounds_agree)
    training = result.training
    data.update(
        train_seconds=training.seconds if training else None,
        passes_ratio=training.passes_ratio if training else None,
        dev_accuracy=training.dev_accuracy if training else None,
        peak_memory_bytes=result.peak_memory_bytes,
        histogram=result.exit_histogram,
        settings=result.params,
    )
    return data


_MEANS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "flops_linear",
    "flops_full",
    "params",
    "mean_layers",
    "mean_heads",
    "depth",
    "valid_token_ratio",
    "samples_per_s",
    "seconds",
    "speedup",
    "train_seconds",
    "passes_ratio",
    "dev_accuracy",
    "peak_memory_bytes",
)


def _mean(values: list[Any]) -> float | None:
    """Mean of the finite values; None where there are none."""
    good = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(good) if good else None


def _spread(values: list[Any]) -> float | None:
    """Sample standard deviation; None below two values."""
    good = [value for value in values if value is not None and math.isfinite(value)]
    return stdev(good) if len(good) > 1 else None


def _rows(results: list[Result]) -> tuple[list[dict[str, Any]], list[list[Cell]]]:
    """Average cells that differ in nothing but the seed. Returns rows and the cells behind each."""
    together: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        cell = result.cell
        key = (cell.dataset, result.synthetic, cell.method, cell.point, *(getattr(cell, name) for name in SETTING))
        together.setdefault(key, []).append(result)
    rows, members = [], []
    for same in together.values():
        flat = [_flat(result) for result in same]
        row = {
            name: flat[0][name] for name in ("dataset", "synthetic", "language", "kind", "method", "point", *SETTING)
        }
        row["data"] = "synthetic" if row["synthetic"] else "real"
        row.update(seeds=len(flat), seed_list=" ".join(str(seed) for seed in sorted(f["seed"] for f in flat)))
        row.update({name: _mean([f[name] for f in flat]) for name in _MEANS})
        for name in ("accuracy", "samples_per_s", "speedup"):
            row[f"{name}_sd"] = _spread([f[name] for f in flat])
        # Over seeds: the envelope, so that an average never looks steadier than its parts.
        low, high = (
            [v for f in flat if (v := f[n]) is not None and math.isfinite(v)] for n in ("speedup_p10", "speedup_p90")
        )
        row.update(speedup_p10=min(low, default=None), speedup_p90=max(high, default=None))
        row.update(n=min(f["n"] for f in flat), rounds=min(f["rounds"] for f in flat))
        row["rounds_agree"] = min(f["rounds_agree"] for f in flat)
        row["reference"] = next((f["reference"] for f in flat if f["reference"]), None)
        layers = max(len(f["histogram"]) for f in flat)
        row["histogram"] = [sum(f["histogram"][i] for f in flat if i < len(f["histogram"])) for i in range(layers)]
        phases = sorted({name for f in flat for name in f["phases"]})
        row["phases"] = {name: _mean([f["phases"].get(name) for f in flat]) for name in phases}
        row["settings"] = flat[0]["settings"]
        row["notes"] = sorted({note for result in same for note in result.notes})
        rows.append(row)
        members.append([result.cell for result in same])
    return rows, members


def _groups(rows: list[dict[str, Any]]) -> list[Group]:
    """The datasets of a run: real before synthetic, then by language and name."""
    found = sorted({(r["synthetic"], r["language"], r["dataset"]) for r in rows})
    groups: list[Group] = []
    seen: set[tuple[str, bool]] = set()
    slugs: set[str] = set()
    for synthetic, language, dataset in found:
        if (dataset, synthetic) in seen:
            continue
        seen.add((dataset, synthetic))
        slug = base = file_slug(dataset) + ("-synthetic" if synthetic else "")
        number = 2
        while slug.lower() in slugs:
            slug, number = f"{base}-{number}", number + 1
        slugs.add(slug.lower())
        label = f"{dataset} (synthetic)" if synthetic else dataset
        mine = [r for r in rows if (r["dataset"], r["synthetic"]) == (dataset, synthetic)]
        groups.append(Group(dataset, synthetic, language, label, slug, facts(mine)))
    return groups


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """FLOPs and layer ratios to the reference of the same run, matched on :data:`SAME_REFERENCE`."""
    for row in rows:
        name = row["reference"] or FALLBACK_REFERENCE
        candidates = [
            other
            for other in rows
            if other["method"] == name
            and other["slug"] == row["slug"]
            and all(other[k] == row[k] for k in SAME_REFERENCE)
        ]
        # Nearest setting first; among a reference's own points, its full depth.
        best = max(
            candidates,
            key=lambda o: (o["order"] == row["order"], o["batch_size"] == row["batch_size"], o["mean_layers"] or 0.0),
            default=None,
        )
        row["is_reference"] = row["method"] == name
        row["ratio_reference"] = name if best else None
        for ratio, cost in (
            ("ratio_linear", "flops_linear"),
            ("ratio_full", "flops_full"),
            ("ratio_layers", "mean_layers"),
        ):
            row[ratio] = _ratio(best[cost], row[cost]) if best else None
        row["kept"] = _ratio(row["speedup"], row["ratio_linear"])


def _order(row: dict[str, Any], groups: list[Group]) -> tuple[Any, ...]:
    position = next(i for i, group in enumerate(groups) if group.slug == row["slug"])
    return (
        position,
        KIND_ORDER.get(row["kind"], 3),
        not row["is_reference"],
        row["method"],
        row["point"].partition("/")[2],
        -(row["mean_layers"] or 0.0),
        row["point"],
        *(str(row[name]) for name in SETTING),
    )


def _difficulty(rows: list[dict[str, Any]], members: list[list[Cell]], reader: SampleReader) -> list[dict[str, Any]]:
    """Accuracy and mean exit layer per true difficulty; unknown difficulty (-1) is left out."""
    found: list[dict[str, Any]] = []
    for row, cells in zip(rows, members, strict=True):
        if not row["synthetic"]:
            continue
        frames = [frame for cell in cells if (frame := reader.read(cell)) is not None]
        if not frames:
            continue
        known = pd.concat(frames) if len(frames) > 1 else frames[0]
        known = known[known["difficulty"] >= 0]
        for level in sorted(set(known["difficulty"].tolist())):
            part = known[known["difficulty"] == level]
            keys = (
                "slug",
                "label",
                "dataset",
                "data",
                "kind",
                "method",
                "point",
                *SETTING,
                "mean_layers",
                "depth",
                "rounds_agree",
            )
            found.append(
                {
                    **{key: row[key] for key in keys},
                    "difficulty": level,
                    "n": len(part),
                    "accuracy": float(part["correct"].mean()),
                    "exit_layer": float(part["exit_layer"].mean()),
                }
            )
    return found
