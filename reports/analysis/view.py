"""One view of a run: pandas frames and facts, from which every format is rendered.

Data flows one way: run folder -> :class:`View` -> tables, figures, page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import ResultError
from harness.results.run_folder import RunFolder
from harness.results.schema import Cell
from reports.analysis.caveats import fingerprint_facts, gather_caveats
from reports.analysis.cell_settings import SETTING, facts, varying
from reports.analysis.control_tests import compare_with_controls
from reports.analysis.curves import measure_curves
from reports.analysis.prediction_quality import predictor_quality
from reports.analysis.read_run import lost_cells, read_compared, read_variants, take_in
from reports.analysis.result_rows import add_noise, add_ratios, averaged, flat
from reports.analysis.rival_tests import compare_with_rivals
from reports.analysis.samples import SampleReader
from reports.notation.marks import signs, together

KIND_ORDER = {"method": 0, "control": 1, "bound": 2}


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
        verdicts: one row per comparison of a predicting method with a control (:mod:`reports.analysis.control_tests`).
        predictors: one row per row that predicts exits (:mod:`reports.analysis.prediction_quality`).
        rivals: one row per method's row and rival (:mod:`reports.analysis.rival_tests`).
        curves: one row per accuracy/FLOPs curve (:mod:`reports.analysis.curves`).
        varying: coordinates that differ inside a group and are therefore shown as columns.
        fingerprint: (key, value) of the machine and versions.
        caveats: what a reader must know before believing a number.
        lost: cells that a dataset should have and has not, by its name as in files.
        variants: what the variants among the methods are (:func:`reports.analysis.read_run.read_variants`).
    """

    name: str
    groups: list[Group]
    cells: pd.DataFrame
    rows: pd.DataFrame
    difficulty: pd.DataFrame
    verdicts: pd.DataFrame
    predictors: pd.DataFrame
    rivals: pd.DataFrame
    curves: pd.DataFrame
    varying: list[str]
    fingerprint: list[tuple[str, str]] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    variants: list[dict[str, Any]] = field(default_factory=list)

    @property
    def synthetic(self) -> bool:
        """Whether any number comes from embedded data."""
        return any(group.synthetic for group in self.groups)

    def lost_of(self, group: Group) -> list[str]:
        """Cells of a dataset that were broken or failed."""
        return self.lost.get(re.sub(r"[^\w.=+-]+", "_", group.dataset), [])

    def noise_of(self, group: Group) -> str:
        """The A/A band of a dataset as text, per device where there are several; empty where none is known."""
        part = self.of(group)
        bands = {
            r["device"]: r["noise"] for r in part[["device", "noise"]].to_dict("records") if r["noise"] is not None
        }
        several = part["device"].nunique() > 1
        return ", ".join(f"{band}{f' on {device}' if several else ''}" for device, band in bands.items())

    def of(self, group: Group, frame: str = "rows") -> pd.DataFrame:
        """The part of a frame that belongs to one group."""
        whole: pd.DataFrame = getattr(self, frame)
        return whole[whole["slug"] == group.slug] if len(whole) else whole

    def records(self, group: Group) -> list[dict[str, Any]]:
        """The rows of one group as dictionaries."""
        return [{str(key): value for key, value in record.items()} for record in self.of(group).to_dict("records")]


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
    run = RunFolder.open(run_path)
    results, doubts = take_in(run)
    if not results:
        raise ResultError(_explain_empty(run))
    reader = SampleReader(run, results)
    rows, members = averaged(results)
    groups = _groups(rows)
    slugs = {(g.dataset, g.synthetic): g.slug for g in groups}
    labels = {(g.dataset, g.synthetic): g.label for g in groups}
    for row in rows:
        key = (row["dataset"], row["synthetic"])
        row["slug"], row["label"] = slugs[key], labels[key]
    add_ratios(rows)
    add_noise(rows)
    order = sorted(range(len(rows)), key=lambda i: _order(rows[i], groups))
    rows, members = [rows[i] for i in order], [members[i] for i in order]
    _add_marks(rows, members, reader if samples else None)
    difficulty = _difficulty(rows, members, reader) if samples else []
    verdicts = compare_with_controls(rows, members, reader.read) if samples else []
    for verdict in verdicts:
        _carry(verdict, rows)
    predictors = predictor_quality(rows, members, reader.read) if samples else []
    rivals = compare_with_rivals(rows, members, reader.read, read_compared(run)) if samples else []
    return View(
        name=run.path.resolve().name,
        groups=groups,
        cells=pd.DataFrame([flat(result) for result in results]),
        rows=pd.DataFrame(rows),
        difficulty=pd.DataFrame(difficulty),
        verdicts=pd.DataFrame(verdicts),
        predictors=pd.DataFrame(predictors),
        rivals=pd.DataFrame(rivals),
        curves=pd.DataFrame(measure_curves(rows, varying(rows))),
        varying=varying(rows),
        fingerprint=fingerprint_facts([result.fingerprint for result in results]),
        lost=lost_cells(run, results),
        variants=read_variants(run, {row["method"] for row in rows}),
        caveats=gather_caveats(run, results, rows, reader.problems if samples else (), doubts),
    )


def _explain_empty(run: RunFolder) -> str:
    """Why a run has nothing to report, and what to do."""
    hints = [f"{len(run.broken)} broken result(s) were set aside"] if run.broken else []
    if failed := len(list((run.path / "failures").glob("*.json"))):
        hints.append(f"{failed} cell(s) failed, see {run.path / 'failures'}")
    why = f" ({'; '.join(hints)})" if hints else ""
    return f"no results in {run.path}{why}: measure first with 'geep-bench run --profile quick --out {run.path}'"


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


def _add_marks(rows: list[dict[str, Any]], members: list[list[Cell]], reader: SampleReader | None) -> None:
    """The marks of every row; without a reader nobody looks whether per-sample rows are there."""
    seeds: dict[str, int] = {}
    for row in rows:
        seeds[row["slug"]] = max(seeds.get(row["slug"], 0), row["seeds"])
    for row, cells in zip(rows, members, strict=True):
        row["samples_missing"] = bool(
            reader and not reader.stripped and any(reader.read(cell) is None for cell in cells)
        )
        row["partial"] = row["left_out"] or row["seeds"] < seeds[row["slug"]]
        row["marks"] = signs(row)


def _carry(verdict: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Marks of both sides of a comparison, and the A/A band of its dataset."""
    keys = ("slug", *(name for name in SETTING if name != "executor"))
    sides = [
        row
        for row in rows
        if (row["method"], row["point"])
        in ((verdict["method"], verdict["point"]), (verdict["control"], verdict["control_point"]))
        and all(row[key] == verdict[key] for key in keys)
    ]
    verdict["marks"] = together(*(row["marks"] for row in sides))
    verdict["noise"], verdict["noise_high"] = sides[0]["noise"], sides[0]["noise_high"]


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
                "marks",
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
