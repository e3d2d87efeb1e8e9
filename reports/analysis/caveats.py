"""What a reader must know before believing a number, and on which machine it was measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from harness.results.run_folder import RunFolder, failed_cell
from harness.results.schema import Result
from reports.analysis.read_run import mixed_code

# Parts of fingerprint keys that change from cell to cell on one and the same machine.
_FLEETING = ("time", "date", "load", "free", "available", "uptime", "created", "temperature", "clock", "pid")
_LONGEST = 200
_LONGEST_REASON = 500


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
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


def _collect(fingerprints: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Distinct values per key, in order of appearance."""
    values: dict[str, list[str]] = {}
    for fingerprint in fingerprints:
        for key, value in _flatten(fingerprint).items():
            known = values.setdefault(key, [])
            if value not in known:
                known.append(value)
    return values


def fingerprint_facts(fingerprints: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(key, value) lines of all cells together; where cells differ, the first few values."""
    facts = []
    for key, values in _collect(fingerprints).items():
        text = " | ".join(value[:_LONGEST] for value in values[:3])
        facts.append((key, text + (f" | and {len(values) - 3} more" if len(values) > 3 else "")))
    return facts


def gather_caveats(
    run: RunFolder,
    results: Sequence[Result],
    rows: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    doubts: Sequence[str] = (),
) -> list[str]:
    """One sentence each; paths are given relative to the run folder.

    Args:
        run: the run, its results read.
        results: what is reported.
        rows: rows of the view.
        problems: what is wrong with per-sample rows.
        doubts: what is wrong with results (:func:`reports.analysis.read_run.take_in`).
    """
    caveats = [f"Set aside: {message}" for message in run.broken]
    told = " ".join(run.broken)
    caveats += [
        f"Set aside earlier as broken: {path.name}; its cell is missing unless it was measured again."
        for path in sorted((run.path / "set-aside").glob("*.json"))
        if path.name not in told
    ]
    caveats += [*doubts, *_failures(run, results)]
    caveats += [f"No per-sample rows: {problem}" for problem in problems]
    caveats += _failed_checks(rows)
    differing = [
        key
        for key, values in _collect([result.fingerprint for result in results]).items()
        if len(values) > 1 and not any(word in key.lower() for word in (*_FLEETING, "commit", "geep-bench"))
    ]
    caveats += mixed_code(results)
    if differing:
        caveats.append(
            f"Cells were not all measured on the same machine and versions; these differ: {', '.join(differing)}."
        )
    references = sorted({str(r["reference"]) for r in rows if r["reference"]})
    if len(references) > 1:
        caveats.append(f"Speed-ups refer to several references: {', '.join(references)}.")
    caveats += _drift(rows) + _notes(rows)
    prefix = f"{run.path}/"
    return _merge([caveat.replace(prefix, "") for caveat in caveats])


# Beyond this factor between cells the speed of the machine changed while the run went on.
_STEADY = 1.25


def _drift(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where one and the same reference took much longer beside some cells than beside others."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = tuple(
            row[name] for name in ("label", "device", "protocol", "order", "batch_size", "batch_tokens", "dtype")
        )
        found.setdefault(key, []).extend(median(one) for one in row["reference_seconds"] if one)
    return [
        f"{key[0]}: passes of the reference took from {min(times):.3g} to {max(times):.3g} s from cell to cell, so the machine was "
        "not equally fast throughout; compare speed-ups, whose passes alternate, rather than samples/s."
        for key, times in found.items()
        if times and min(times) > 0 and max(times) / min(times) > _STEADY
    ]


_CHECKS = {
    "†": "Answers differed between rounds, whose sample order differs",
    "‡": "Answers differed between batch sizes",
    "§": "Testing changed what was learnt",
    "¶": "Test rows also occur in train or dev",
}


def _failed_checks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each kind of check that failed, with the rows where it did."""
    lines = []
    for sign, what in _CHECKS.items():
        where = list(
            dict.fromkeys(
                str(r["label"]) if sign == "¶" else f"{r['method']} {r['point']} on {r['label']}"
                for r in rows
                if sign in r["marks"]
            )
        )
        if where:
            more = f" and {len(where) - 8} more" if len(where) > 8 else ""
            lines.append(f"{what}, in rows marked {sign}: {'; '.join(where[:8])}{more}.")
    return lines


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Notes of the cells; one that all cells of a dataset carry is about the dataset and is said once."""
    cells: dict[str, int] = Counter(row["label"] for row in rows)
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for note in row["notes"]:
            seen[row["label"], note].append(f"{row['method']} {row['point']}")
    lines = []
    for (label, note), where in seen.items():
        about = (
            label
            if len(where) == cells[label]
            else f"{', '.join(where[:4])}{' and others' * (len(where) > 4)} on {label}"
        )
        lines.append(f"{about}: {note}")
    return lines


def _failures(run: RunFolder, results: Sequence[Result]) -> list[str]:
    """Cells whose method raised and that nobody measured afterwards."""
    try:
        failures = run.failures()
    except (OSError, ValueError) as error:
        return [f"The folder failures/ cannot be read ({error}); failed cells may be missing from this list."]
    done = {result.cell for result in results}
    lines = []
    for failure in failures:
        if failed_cell(failure) in done:  # records of older versions lack the younger coordinates
            continue
        record = failure if isinstance(failure, dict) else {}
        cell = record["cell"] if isinstance(record.get("cell"), dict) else {}
        # Records of older versions give no reason.
        reason = record.get("reason") or (str(record.get("traceback", "")).strip().splitlines() or ["no traceback"])[-1]
        where = " / ".join(str(cell.get(key, "?")) for key in ("dataset", "method", "point"))
        lines.append(f"Failed and missing: {where}, seed {cell.get('seed', '?')}: {str(reason)[:_LONGEST_REASON]}")
    return lines


def _merge(lines: list[str]) -> list[str]:
    """The same lines once each, in order."""
    return list(dict.fromkeys(lines))
