"""Which cells of a run were measured under equal conditions. Others get separate rows and are never paired or averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase

import numpy as np

from harness.core.errors import ResultError
from harness.results.comparability import differences, thread_differences
from harness.results.run_folder import RunFolder
from harness.results.schema import Binding, Cell, Result
from reports.analysis.cell_settings import grouped

_FEW = 6


@dataclass(frozen=True)
class Evidence:
    """What is known about the rows of a cell, and the settings that must be equal.

    Attributes:
        n: number of test rows.
        labels: hash of labels and lengths of the test rows, for results without ``binding``; empty where it is not needed or
            the rows are missing.
        threads: of the CPU while measuring; ``None``: not recorded.
        source: where the data came from. A method has one row per set, so cells of two sources are not joined.
    """

    n: int
    binding: Binding | None
    labels: str = ""
    threads: int | None = None
    source: str = ""

    def differences(self, other: Evidence) -> list[str]:
        """Return in words what two cells differ in although it must be equal."""
        found = differences(self.binding, other.binding)
        if self.source != other.source:
            found.append(f"source of the data ({self.source} and {other.source})")
        if self.n != other.n and "test rows" not in found:
            found.append(f"number of test rows ({self.n} and {other.n})")
        elif self.labels and other.labels and self.labels != other.labels:
            found.append("labels or lengths of the test rows")
        return found + thread_differences(self.threads, other.threads)


@dataclass
class ComparableCells:
    """Cells of one dataset that may be compared with each other; ``name`` is empty if they are all of its cells."""

    name: str = ""
    cells: list[Cell] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)

    def accepts(self, one: Evidence) -> bool:
        return all(not one.differences(mine) for mine in self.evidence)


@dataclass(frozen=True)
class Conditions:
    """The cells of a run, grouped by the conditions under which they were measured.

    Attributes:
        names: cell -> the name of its group, unique in its dataset; empty if the dataset has one group only.
        apart: a sentence for each dataset with several groups.
        unchecked: a sentence if results have no fingerprints, so that conditions could not be checked.
    """

    names: dict[Cell, str]
    apart: list[str]
    unchecked: list[str]


def find_conditions(run: RunFolder, results: Sequence[Result]) -> Conditions:
    """Group the results of a run: each joins the first group with which it can be compared."""
    names: dict[Cell, str] = {}
    apart = []
    for (dataset, synthetic), same in grouped(results, lambda one: (one.cell.dataset, one.synthetic)).items():
        groups: list[ComparableCells] = []
        for result in same:
            evidence = _evidence(run, result)
            group = next((group for group in groups if group.accepts(evidence)), None)
            if group is None:
                groups.append(group := ComparableCells())
            group.cells.append(result.cell)
            if evidence not in group.evidence:
                group.evidence.append(evidence)
        groups.sort(key=lambda group: -len(group.cells))
        if len(groups) > 1:
            for number, group in enumerate(groups):
                group.name = ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)
            apart.append(_sentence(f"{dataset} (synthetic)" if synthetic else dataset, groups))
        names |= {cell: group.name for group in groups for cell in group.cells}
    return Conditions(names, apart, _unchecked(results))


def unlike_sets(results: Sequence[Result]) -> list[str]:
    """Return a sentence if sets were measured in different ways, although tables over all sets average them.

    Rows, lengths and backbones may differ from set to set. Only what both sets have is compared.
    """
    lines = []
    for synthetic, half in grouped(results, lambda one: one.synthetic).items():
        first, *others = grouped(half, lambda one: one.cell.dataset).items()
        base = _ways(first[1])
        differ: dict[tuple[str, ...], list[str]] = {}
        for dataset, same in others:
            mine = _ways(same)
            if words := tuple(name for name in base if name in mine and mine[name] != base[name]):
                differ.setdefault(words, []).append(dataset)
        parts = [
            f"{' and '.join((first[0], *names))} differ in {', '.join(words[:_FEW])}"
            + f" and {len(words) - _FEW} more" * (len(words) > _FEW)
            for words, names in differ.items()
        ]
        if parts:
            lines.append(
                f"Tables over all{' synthetic' * synthetic} sets average cells that were not measured in the same way: "
                f"{'; '.join(parts)}. To average like with like, run all sets again with the same settings and code."
            )
    return lines


def _ways(results: Sequence[Result]) -> dict[str, frozenset[object]]:
    """Return in words how cells were measured -> the values that they have; what is not recorded is left out."""
    found: dict[str, set[object]] = {}
    for result in results:
        facts: dict[str, object] = {"threads while measuring": result.fingerprint.get("torch_threads")}
        if (binding := result.binding) is not None:
            facts |= {f"settings of {name}": value for name, value in (binding.settings or {}).items()}
            facts |= {f"version of {name}": value for name, value in binding.versions.items()}
            facts |= {f"precision of {result.cell.method}": binding.precision, "threads per fit": binding.fit_threads}
            if binding.settings is None:
                facts |= {f"training.{key} of {result.cell.method}": value for key, value in binding.training.items()}
        for name, value in facts.items():
            if value is not None:
                found.setdefault(name, set()).add(value)
    return {name: frozenset(values) for name, values in found.items()}


def _evidence(run: RunFolder, result: Result) -> Evidence:
    labels = ""
    if result.binding is None and result.cell not in run.without_rows:
        try:
            rows = run.samples(result.cell)[["index", "label", "length"]].to_numpy(dtype=np.int64)
            labels = hashlib.sha256(rows.tobytes()).hexdigest()
        except (ResultError, KeyError, ValueError):  # reported where the rows are read for a table
            labels = ""
    return Evidence(
        result.quality.n, result.binding, labels, result.fingerprint.get("torch_threads"), result.cell.source
    )


def _sentence(label: str, groups: Sequence[ComparableCells]) -> str:
    """Return which groups a dataset has, and what each of the others differs in from the first."""
    parts = [f"{group.name} has {_methods(group)}" for group in groups]
    first = groups[0].evidence
    for group in groups[1:]:
        found = dict.fromkeys(word for mine in group.evidence for one in first for word in one.differences(mine))
        words = list(found)
        more = f" and {len(words) - _FEW} more" if len(words) > _FEW else ""
        parts.append(f"{group.name} differs from {groups[0].name} in {', '.join(words[:_FEW])}{more}")
    return (
        f"{label}: cells that do not belong together are in rows of their own and never paired or averaged: {'; '.join(parts)}. "
        "To compare them, run all methods and seeds again with the same data and settings."
    )


def _methods(group: ComparableCells) -> str:
    methods = list(dict.fromkeys(cell.method for cell in group.cells))
    shown = ", ".join(methods[:_FEW]) + (f" and {len(methods) - _FEW} more" if len(methods) > _FEW else "")
    seeds = sorted({cell.seed for cell in group.cells})
    return f"{shown} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"


def _unchecked(results: Sequence[Result]) -> list[str]:
    old = sum(result.binding is None for result in results)
    if not old:
        return []
    return [
        f"{old} of {len(results)} cells were measured before results had fingerprints of their test rows and settings. Whether "
        "they belong together was checked only by number, labels and lengths of the test rows, as far as these are there."
    ]
