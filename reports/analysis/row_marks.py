"""The marks of a row: which checks it failed, and which caveats apply."""

from __future__ import annotations

from harness.results.engine_tolerance import too_different
from reports.analysis.result_rows import ResultRow
from reports.notation.marks import MARKS


def marks_of(row: ResultRow) -> str:
    """Return the marks of a row, in the order of :data:`reports.notation.marks.MARKS`."""
    applies = {
        "†": row.rounds_agree is not None and row.rounds_agree < 1,
        "‡": row.batches_agree is not None and row.batches_agree < 1,
        "§": row.state_unchanged is False,
        "¤": too_different(row.engine, row.engine_agrees, row.engine_difference, row.dtype),
        "¶": row.overlaps is not None and max(row.overlaps.train_test, row.overlaps.dev_test) > 0,
        "°": row.samples_missing,
        "#": row.partial,
        "»": row.last_epoch,
        "‖": bool(row.collapsed),
        "≈": row.slow,
    }
    return "".join(mark.sign for mark in MARKS if applies[mark.sign])
