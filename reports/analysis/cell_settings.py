"""How rows are told apart and together: the coordinates of a cell that belong to its execution."""

from __future__ import annotations

from typing import Any

# Coordinates of a cell that two averaged numbers must share.
SETTING = (
    "source",
    "backbone",
    "protocol",
    "order",
    "executor",
    "batch_size",
    "batch_tokens",
    "device",
    "dtype",
    "compute",
)
# Coordinates that a row and its reference must share, whatever else differs.
SAME_REFERENCE = ("source", "backbone", "protocol", "device", "dtype")


_PHRASES = {
    "n": "{} test samples",
    "batch_size": "batch {}",
    "batch_tokens": "at most {} tokens a batch",
    "dtype": "{}",
    "device": "{}",
    "compute": "{}",
}


def facts(rows: list[dict[str, Any]]) -> str:
    """Coordinates shared by all rows, as one line."""
    parts = []
    for name in (*SETTING, "n"):
        values = {row[name] for row in rows}
        if len(values) == 1 and name != "executor" and values != {0}:
            parts.append(_PHRASES.get(name, name + " {}").format(values.pop()))
    return ", ".join(parts)


def varying(rows: list[dict[str, Any]]) -> list[str]:
    """Coordinates that must be shown beside the method for a row to be told from its neighbours."""
    shown = []
    for name in SETTING:
        # These may belong to the method (FastBERT's loop, compiled blocks); they tell rows apart where one ran with two.
        scope = ("slug", "method", "point") if name in ("executor", "compute") else ("slug",)
        values: dict[tuple[Any, ...], set[Any]] = {}
        for row in rows:
            values.setdefault(tuple(row[key] for key in scope), set()).add(row[name])
        if any(len(found) > 1 for found in values.values()):
            shown.append(name)
    return shown
