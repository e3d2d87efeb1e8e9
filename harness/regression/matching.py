"""Which cells of two runs are compared: those that both have, under equal conditions. All others of base are gaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from harness.results.comparability import differences, thread_differences
from harness.results.packed_run import PackedCell, PackedRun
from harness.results.schema import Cell

# Coordinates that depend on the machine: cells that differ only in these are compared, but not their times.
MACHINE = ("device", "dtype", "compute", "executor", "engine")
_LISTED = 6

K = TypeVar("K")
Twin = tuple[list[PackedCell], list[PackedCell]]  # a cell in base and in new, one entry per seed


def grouped(pairs: Iterable[tuple[K, Cell]]) -> dict[K, list[Cell]]:
    found: dict[K, list[Cell]] = {}
    for key, cell in pairs:
        found.setdefault(key, []).append(cell)
    return found


def several(cells: Sequence[Cell]) -> str:
    """Return the cells of one sentence in a few words."""
    first = cells[0]
    more = f" and {len(cells) - 1} more cells" if len(cells) > 1 else ""
    return f"{first.dataset} {first.method} {first.point}, seed {first.seed}{more}"


def missing_cells(new: PackedRun, only_base: Sequence[Cell]) -> list[str]:
    """Return a sentence per dataset and method of base whose cells are not in the new run and did not fail there."""
    failed = {(cell.dataset, cell.method, cell.seed) for cell in new.failed}
    missing = [cell for cell in only_base if (cell.dataset, cell.method, cell.seed) not in failed]
    sentences = []
    for (dataset, method), cells in grouped(((cell.dataset, cell.method), cell) for cell in missing).items():
        names = [f"{cell.point} seed {cell.seed}" for cell in cells]
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        sentences.append(f"{dataset} {method}: missing in {new.name}: {', '.join(names[:_LISTED])}{more}")
    return sentences


def lost_rows(new: PackedRun, twins: Sequence[Twin]) -> list[str]:
    """Return a sentence if there are cells whose answers only base has."""
    pairs = [pair for twin in twins for pair in zip(*twin, strict=True)]
    lost = [young.cell for old, young in pairs if old.correct is not None and young.correct is None]
    text = f"{new.name} has no per-sample rows, so accuracy is not tested: measure again"
    return [f"{several(lost)}: {text}"] if lost else []


def match(
    base_run: PackedRun, new_run: PackedRun
) -> tuple[list[tuple[list[PackedCell], list[PackedCell]]], list[Cell], list[Cell]]:
    """Match the cells of both runs.

    Cells match by all coordinates. Of the rest, those match that are unique without the coordinates of the machine.

    Returns:
        Pairs of lists (base, new) with one cell per seed, and the cells without a match in base and in new. Seeds that do not
        belong together in base, or in new, are in pairs of their own.
    """
    found: dict[tuple[Any, ...], list[Twin]] = {}
    left, right = list(base_run.cells), list(new_run.cells)
    for ignored in ((), MACHINE):
        ours, theirs = _by_coordinates(left, ignored), _by_coordinates(right, ignored)
        for key, olds in ours.items():
            youngs = theirs.get(key, [])
            if len(olds) == len(youngs) == 1:
                # The number of ignored coordinates keeps the seeds of both kinds of matches apart.
                same = found.setdefault((len(ignored), *(pair for pair in key if pair[0] != "seed")), [])
                old, young = olds[0], youngs[0]
                twin = next((twin for twin in same if _seeds_fit(base_run, new_run, twin, old, young)), None)
                if twin is None:
                    same.append(twin := ([], []))
                for side, cells, matched in zip(twin, (left, right), (old, young), strict=True):
                    side.append(matched)
                    cells.remove(matched)
    twins = [twin for same in found.values() for twin in same]
    return twins, [one.cell for one in left], [one.cell for one in right]


def _seeds_fit(base: PackedRun, new: PackedRun, twin: Twin, old: PackedCell, young: PackedCell) -> bool:
    """Return whether another seed of a cell may be averaged with those that a pair already has."""
    sides = ((base, twin[0], old), (new, twin[1], young))
    return not any(cell_differences(run, run, one, seed, code=True) for run, ones, seed in sides for one in ones)


def _by_coordinates(cells: Sequence[PackedCell], ignored: Sequence[str]) -> dict[tuple[Any, ...], list[PackedCell]]:
    groups: dict[tuple[Any, ...], list[PackedCell]] = defaultdict(list)
    for one in cells:
        groups[tuple(one.cell.model_dump(exclude=set(ignored)).items())].append(one)
    return groups


def cell_differences(
    base: PackedRun, new: PackedRun, old: PackedCell, young: PackedCell, *, code: bool = False
) -> list[str]:
    """Return what two cells differ in although it must be equal.

    Without fingerprints on both sides that is all that is known about rows: their number, labels and tokens.

    Args:
        code: the version of the code must be equal, too, and so must threads.
    """
    if code and (found := thread_differences(base.machine(old).torch_threads, new.machine(young).torch_threads)):
        return found
    bindings = base.binding(old), new.binding(young)
    if None not in bindings and (found := differences(*bindings, across_code=not code)):
        return found
    if old.n != young.n:
        return [f"number of test rows ({old.n} and {young.n})"]
    if old.rows != young.rows and None not in (old.rows, young.rows):
        return ["labels of the test rows"]
    if None in bindings and old.tokens != young.tokens and None not in (old.tokens, young.tokens):
        return [f"tokens of the test rows ({old.tokens} and {young.tokens})"]
    return []
