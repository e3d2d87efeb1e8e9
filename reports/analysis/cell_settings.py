"""Settings under which a cell was measured: which of them rows share, and which tell rows apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# Coordinates of a cell that two averaged numbers must share.
SETTING = (
    *("source", "backbone", "protocol", "order", "executor"),
    *("batch_size", "batch_tokens", "device", "dtype", "compute", "engine"),
)
# The same of two rows: their cells must also belong together (:mod:`reports.analysis.conditions`).
ROW_SETTING = (*SETTING, "conditions")
# What a row and its reference must share.
SAME_REFERENCE = ("source", "backbone", "protocol", "device", "dtype", "conditions")
# What is shown beside these: rows that belong together share it, as far as it is known, and rows without training have none.
_RECORDED = ("trained_in", "fit_threads", "threads")
_PHRASES = {
    "n": "{} test samples",
    "trained_in": "trained in {}",
    "fit_threads": "threads per fit {}",
    "threads": "threads while measuring {}",
    "batch_size": "batch {}",
    "batch_tokens": "at most {} tokens a batch",
    **dict.fromkeys(("dtype", "device", "compute"), "{}"),
}


def values_of(row: object, names: Collection[str]) -> tuple[Hashable, ...]:
    """Return several attributes of a row, to be compared or used as a key."""
    return tuple(getattr(row, name) for name in names)


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return key -> rows with this key, both in order of appearance."""
    found: dict[K, list[T]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def shared_facts(rows: Sequence[object]) -> str:
    """Return the settings that all rows share, as one line."""
    parts = []
    for name in (*SETTING, "n", *_RECORDED):
        values = {getattr(row, name) for row in rows}
        if name in _RECORDED:
            values -= {"", None}
        if len(values) == 1 and name != "executor" and values not in ({0}, {None}):
            parts.append(_PHRASES.get(name, name + " {}").format(values.pop()))
        elif name == "engine" and len(values) > 1 and parts:
            parts[-1] += " unless an engine is named"  # of dtype and compute, which stand before it
    return ", ".join(parts)


def varying_settings(rows: Sequence[object]) -> list[str]:
    """Return the settings that must be shown beside the method, because rows of a dataset differ in them."""
    shown = []
    for name in ROW_SETTING:
        # Executor and compute may belong to the method; they are shown only where one method ran with two.
        scope = ("slug", "method", "point") if name in ("executor", "compute") else ("slug",)
        same = grouped(rows, lambda row, scope=scope: values_of(row, scope))  # type: ignore[misc]
        if any(len({getattr(row, name) for row in some}) > 1 for some in same.values()):
            shown.append(name)
    return shown
