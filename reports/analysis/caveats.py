"""Caveats of a run, and the machine and versions that it was measured with."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from harness.results.run_folder import RunFolder, failed_cell
from harness.results.schema import Result
from reports.analysis.cell_settings import values_of
from reports.analysis.result_rows import SAME_PACE, ResultRow
from reports.analysis.run_contents import first_few
from reports.analysis.time_ratios import STEADY

# Parts of fingerprint keys that change from cell to cell on the same machine.
_CHANGING = ("time", "date", "load", "free", "available", "uptime", "created", "temperature", "clock", "pid")
_LONGEST = 200
_LONGEST_REASON = 500


def _flatten(data: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{name}."))
        elif isinstance(value, (list, tuple)):
            flat[name] = ", ".join(str(item) for item in value)
        else:
            flat[name] = "—" if value is None else str(value)
    return flat


def _distinct(fingerprints: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    """Return the distinct values of each key, in order of appearance."""
    values: dict[str, dict[str, None]] = {}
    for fingerprint in fingerprints:
        for key, value in _flatten(fingerprint).items():
            values.setdefault(key, {})[value] = None
    return {key: list(found) for key, found in values.items()}


def fingerprint_facts(fingerprints: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    """Return (key, value) pairs of all cells together; where cells differ, the first few values."""
    facts = []
    for key, values in _distinct(fingerprints).items():
        text = " | ".join(value[:_LONGEST] for value in values[:3])
        facts.append((key, text + (f" | and {len(values) - 3} more" if len(values) > 3 else "")))
    return facts


def gather_caveats(
    run: RunFolder,
    results: Sequence[Result],
    rows: Sequence[ResultRow],
    problems: Sequence[str],
    doubts: Sequence[str] = (),
) -> list[str]:
    """Return one sentence per caveat; paths are relative to the run folder.

    Args:
        run: the run, after its results were read.
        results: what is reported.
        rows: rows of the view.
        problems: what is wrong with per-sample rows.
        doubts: what is wrong with results (:func:`reports.analysis.run_contents.usable_results`).
    """
    caveats = [*doubts, *_failures(run, results)]
    caveats += [f"No per-sample rows: {problem}" for problem in problems]
    caveats += _failed_checks(rows) + _collapsed(rows) + _answers_nobody(rows)
    differing = [
        key
        for key, values in _distinct([result.fingerprint for result in results]).items()
        if len(values) > 1 and not any(word in key.lower() for word in (*_CHANGING, "commit", "geep-bench"))
    ]
    caveats += _mixed_code(results)
    if differing:
        caveats.append(
            f"Cells were not all measured on the same machine and versions; these differ: {', '.join(differing)}."
        )
    references = sorted({row.reference for row in rows if row.reference})
    if len(references) > 1:
        caveats.append(f"Speed-ups refer to several references: {', '.join(references)}.")
    caveats += _untimed(rows) + _drift(rows) + _notes(rows)
    return list(dict.fromkeys(" ".join(caveat.replace(f"{run.path}/", "").split()) for caveat in caveats))


def set_aside(run: RunFolder) -> list[str]:
    """Return a sentence for each result that cannot be used, and was not measured again; paths are relative to the run."""
    left = [message for message in run.broken if "left in place" in message]
    return [f"Set aside: {sentence}.".replace(f"{run.path}/", "") for sentence in (*run.lost(), *left)]


def _mixed_code(results: Sequence[Result]) -> list[str]:
    """Return a sentence if the cells were measured with more than one version of the code."""
    where: dict[str, list[str]] = defaultdict(list)
    for result in results:
        versions = result.fingerprint.get("versions")
        version = versions.get("geep-bench") if isinstance(versions, Mapping) else None
        commit = result.fingerprint.get("commit")
        name = " ".join(str(part) for part in (f"version {version}" if version else "", commit or "") if part)
        where[name or "unknown"].append(result.cell.dataset)
    if len(where) < 2:
        return []
    counted = sorted(where.items(), key=lambda pair: -len(pair[1]))
    parts = [
        f"{name} ({len(cells)} cell{'s' * (len(cells) > 1)}: {first_few(sorted(set(cells)), 3)})"
        for name, cells in counted
    ]
    return [f"Cells were measured by different code: {'; '.join(parts)}. Run with --fresh to measure all with one."]


def _untimed(rows: Sequence[ResultRow]) -> list[str]:
    """Return a sentence on the cells that were measured for accuracy and work only."""
    never = list(dict.fromkeys(row.method for row in rows if not row.timed))
    seeds = sorted(
        {cell.seed for row in rows for cell, passes in zip(row.cells, row.round_seconds, strict=True) if passes}
    )
    others = sorted({cell.seed for row in rows for cell in row.cells} - {*seeds})
    parts = [f"seeds {first_few([*map(str, others)], 6)} of every method"] if others and seeds else []
    parts += [f"all seeds of {first_few(never, 8)}"] if never else []
    if not parts:
        return []
    return [
        f"Not timed, but measured for accuracy, exits and FLOPs: {' and '.join(parts)}. Means of times, speed-ups and latency are "
        "over the seeds that were timed, all others over all seeds."
    ]


def _drift(rows: Sequence[ResultRow]) -> list[str]:
    """Return a sentence for each setting in which the same reference took much longer for some cells than for others."""
    found: dict[object, tuple[str, list[float]]] = {}
    for row in rows:
        _, times = found.setdefault(values_of(row, SAME_PACE), (row.label, []))
        times.extend(median(one) for one in row.reference_seconds if one)
    return [
        f"{label}: passes of the reference took from {min(times):.3g} to {max(times):.3g} s from cell to cell, so the machine was "
        "not equally fast throughout; compare speed-ups, whose passes alternate, rather than samples/s."
        for label, times in found.values()
        if times and min(times) > 0 and max(times) / min(times) > STEADY
    ]


_CHECKS = {
    "†": "Labels differed between rounds, whose sample order differs",
    "‡": "Labels differed between batch sizes",
    "§": "Testing changed the fitted state",
    "¤": "Answers of the engine differ too much from those of the same fit in float32",
    "¶": "Test rows also occur in train or dev",
    "»": "The epoch that was kept is the last one allowed (trained too short?)",
}
# What a check is about, if not a row.
_NAMES = {"¶": "{0.label}", "»": "{0.method} on {0.label}"}


def _failed_checks(rows: Sequence[ResultRow]) -> list[str]:
    """Return one sentence for each kind of check that failed, with the rows where it did."""
    lines = []
    for sign, what in _CHECKS.items():
        name = _NAMES.get(sign, "{0.method} {0.point} on {0.label}")
        where = [name.format(row) for row in rows if sign in row.marks]
        if where:
            shown = list(dict.fromkeys(where))
            more = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
            lines.append(f"{what}, in rows marked {sign}: {'; '.join(shown[:8])}{more}.")
    return lines


def _collapsed(rows: Sequence[ResultRow]) -> list[str]:
    """Return one sentence for each method of a dataset with heads that collapsed; its points share them."""
    return [
        f"Heads of {row.method} on {row.label} collapsed, in rows marked ‖: {first_few(row.collapsed, 3, '; ')}."
        for row in rows
        if row.collapsed
    ]


def _answers_nobody(rows: Sequence[ResultRow]) -> list[str]:
    """Return one sentence for each method of a dataset whose table answers no dev row before layer 1, at the points it names."""
    idle: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if any(params.get("dev_answered") == 0 for params in row.point_params):
            idle[row.method, row.label].append(row.point)
    return [
        f"{method} on {label}: no threshold lets its table answer dev rows as well as full depth, or better within the budget, so "
        f"nothing is answered before layer 1 at {first_few(points, 4)} (in some seeds, if there are several)."
        for (method, label), points in idle.items()
    ]


def _notes(rows: Sequence[ResultRow]) -> list[str]:
    """Return the notes of the cells; one that all rows of a dataset carry is about the dataset and appears once."""
    count = Counter(row.label for row in rows)
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for note in row.notes:
            seen[row.label, note].append(f"{row.method} {row.point}")
    lines = []
    for (label, note), where in seen.items():
        some = f"{', '.join(where[:4])}{' and others' * (len(where) > 4)} on {label}"
        lines.append(f"{label if len(where) == count[label] else some}: {note}")
    return lines


def _failures(run: RunFolder, results: Sequence[Result]) -> list[str]:
    """Return a sentence for each cell whose method raised and that was not measured afterwards."""
    try:
        failures = run.failures()
    except (OSError, ValueError) as error:
        return [f"The folder failures/ cannot be read ({error}); failed cells may be missing from this list."]
    done = {result.cell for result in results}
    lines = []
    for failure in failures:
        if failed_cell(failure) in done:  # fills in coordinates that older records lack
            continue
        record = failure if isinstance(failure, dict) else {}
        cell = record["cell"] if isinstance(record.get("cell"), dict) else {}
        # Records of older versions give no reason.
        reason = record.get("reason") or (str(record.get("traceback", "")).strip().splitlines() or ["no traceback"])[-1]
        where = " / ".join(str(cell.get(key, "?")) for key in ("dataset", "method", "point"))
        lines.append(f"Failed and missing: {where}, seed {cell.get('seed', '?')}: {str(reason)[:_LONGEST_REASON]}")
    return lines


def caveats_by_place(
    caveats: Sequence[str], labels: Mapping[str, str]
) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Return the caveats that concern the whole run, those about checks, and those about one dataset.

    Args:
        caveats: of :func:`gather_caveats`.
        labels: slug of a dataset -> its label.
    """
    general: list[str] = []
    checks: list[str] = []
    own: dict[str, list[str]] = {slug: [] for slug in labels}
    for caveat in caveats:
        about = [slug for slug, label in labels.items() if _concerns(caveat, label)]
        if any(caveat.startswith(what) for what in _CHECKS.values()):
            checks.append(caveat)
        elif len(about) == 1:
            own[about[0]].append(caveat)
        else:
            general.append(caveat)
    return general, checks, own


def _concerns(caveat: str, label: str) -> bool:
    return caveat.startswith(f"{label}: ") or re.search(rf" on {re.escape(label)}(?![\w-])", caveat) is not None
