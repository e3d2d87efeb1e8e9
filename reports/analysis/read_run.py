"""Results as read, and what is wrong with them: one line each, so that the rest can still be reported."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from harness.results.run_folder import RunFolder
from harness.results.schema import Cell, Result


def name_of(cell: Cell) -> str:
    """A cell in a sentence."""
    return f"{cell.method} {cell.point} on {cell.dataset}, seed {cell.seed}"


def take_in(run: RunFolder) -> tuple[list[Result], list[str]]:
    """Every usable result, one per cell, and a sentence about each that is doubtful.

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
        if names := not_numbers(result):
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            problems.append(f"Not a number in {name_of(result.cell)}: {shown}; shown as missing.")
    return kept, problems


def _choose(run: RunFolder, cell: Cell, same: Sequence[Result], problems: list[str]) -> Result:
    """One of several results of one cell: that of the file named after the cell, whose samples those are."""
    path = run.result_path(cell)
    texts = [result.model_dump_json() for result in same]
    try:
        own = Result.model_validate(json.loads(path.read_text(encoding="utf-8"))).model_dump_json()
        at = texts.index(own)
        why = f"the one in {path.name} is used"
    except (OSError, ValueError):  # of JSON, of the schema, or not among them
        at, why = 0, f"none of them is called {path.name}; the first by name is used"
    differ = "that differ" if len(set(texts)) > 1 else "that are alike"
    problems.append(f"{len(same)} results {differ} claim to be {name_of(cell)}: {why}; delete the others.")
    return same[at]


def not_numbers(result: Result) -> list[str]:
    """Names of the metrics of a result that are NaN or infinite."""
    parts = {"quality": result.quality, "cost": result.cost, "speed": result.speed, "checks": result.checks}
    data: dict[str, Any] = {name: part.model_dump() for name, part in parts.items()}
    data["latency"] = [one.model_dump() for one in result.latency]
    data["speedup_factors"] = result.speedup_factors.model_dump() if result.speedup_factors else None
    data["unseen_tokens"] = result.unseen_tokens
    return list(dict.fromkeys(name for name, value in _leaves(data) if not math.isfinite(value)))


def _leaves(data: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(data, float):
        yield name, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, str(key))
    elif isinstance(data, list):
        for value in data:
            yield from _leaves(value, name)


def mixed_code(results: Sequence[Result]) -> list[str]:
    """A sentence where the cells were measured by more than one state of the code."""
    found: Counter[str] = Counter()
    where: dict[str, set[str]] = defaultdict(set)
    for result in results:
        versions = result.fingerprint.get("versions")
        version = versions.get("geep-bench") if isinstance(versions, Mapping) else None
        commit = result.fingerprint.get("commit")
        name = " ".join(str(part) for part in (f"version {version}" if version else "", commit or "") if part)
        found[name or "unknown"] += 1
        where[name or "unknown"].add(result.cell.dataset)
    if len(found) < 2:
        return []
    told = [
        f"{name} ({count} cell{'s' * (count > 1)}: {', '.join(sorted(where[name])[:3])}"
        + (f" and {len(where[name]) - 3} more" if len(where[name]) > 3 else "")
        + ")"
        for name, count in found.most_common()
    ]
    return [f"Cells were measured by different code: {'; '.join(told)}. Run with --fresh to measure all with one."]


def lost_cells(run: RunFolder, results: Sequence[Result]) -> dict[str, list[str]]:
    """Cells that were broken or failed and that nobody measured again: dataset, as in file names -> what is missing."""
    there = {run.result_path(result.cell).stem for result in results}
    lost: dict[str, list[str]] = defaultdict(list)
    for folder, why in (("set-aside", "broken, set aside"), ("failures", "failed")):
        for path in sorted((run.path / folder).glob("*.json")):
            parts = path.stem.split("--")
            if path.stem not in there and len(parts) >= 5:
                lost["--".join(parts[:-4])].append(f"{parts[-4]} {parts[-3]}, {parts[-2]} ({why})")
    return dict(lost)


def lost_note(cells: Sequence[str], most: int = 8) -> list[str]:
    """A footnote that names rows which a table should have and has not."""
    if not cells:
        return []
    more = f"; and {len(cells) - most} more" if len(cells) > most else ""
    return [f"Missing from this table: {'; '.join(cells[:most])}{more}."]


def _asked(run: RunFolder, key: str) -> Mapping[str, Any]:
    """A table of the run's profile. ``run.json`` is informative: where it is missing or says nothing, nothing is known."""
    try:
        table = json.loads((run.path / "run.json").read_text(encoding="utf-8"))["profile"][key]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return table if isinstance(table, Mapping) else {}


def read_compared(run: RunFolder) -> dict[str, list[str]]:
    """Method -> others that the run's profile wants it compared with; a variant always with what it is like."""
    compared: dict[str, list[str]] = defaultdict(list)
    for method, others in _asked(run, "compare").items():
        compared[str(method)] += map(str, others) if isinstance(others, list) else []
    for method, table in _asked(run, "method").items():
        if isinstance(table, Mapping) and "like" in table:
            compared[str(method)].append(str(table["like"]))
    return dict(compared)


def read_variants(run: RunFolder, methods: Collection[str]) -> list[dict[str, Any]]:
    """The variants of the run's profile that are among ``methods``: ``method``, ``like``, ``needs``, ``settings`` (text)."""
    found = []
    for name, table in _asked(run, "method").items():
        if name in methods and isinstance(table, Mapping) and "like" in table:
            own = {key: value for key, value in table.items() if key not in ("like", "needs")}
            found.append(
                {
                    "method": name,
                    "like": str(table["like"]),
                    "needs": _needs(table.get("needs")),
                    "settings": ", ".join(
                        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in own.items()
                    ),
                }
            )
    return found


def _needs(given: Any) -> str:
    if isinstance(given, Mapping):
        return ", ".join(f"{name} as {role}" for role, name in given.items())
    return ", ".join(str(name) for name in given) if isinstance(given, list) else ""
