"""Tables as plain text, for a terminal or a log."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Nothing but a line of dashes below the headings.
_BOX = Box("    \n    \n----\n    \n    \n    \n    \n    \n")
_NARROWEST = 12


def terminal_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    notes: Sequence[str] = (),
    left: int = 1,
    width: int | None = None,
) -> str:
    """Return a table as aligned text without colour; numbers are never cut or wrapped.

    Args:
        headers: one heading per column; without any text in them there is no heading line.
        rows: the cells, one per heading.
        notes: lines below the table.
        left: how many columns, counted from the first, are aligned left; all others are aligned right.
        width: most terminal columns of a line; the first column is cut with "…" to keep to it. None: nothing is cut.

    Returns:
        Lines without trailing spaces, the last one ended by a line break. East Asian wide characters count two columns.
    """
    widths = [max(cell_len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    gaps = 2 * (len(widths) - 1)
    if width is not None and sum(widths) + gaps > width:
        widths[0] = min(widths[0], max(_NARROWEST, width - sum(widths[1:]) - gaps))
    table = Table(box=_BOX, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_header=any(headers))
    for i, header in enumerate(headers):
        side = "left" if i < left else "right"
        table.add_column(Text(header), width=widths[i], no_wrap=True, overflow="ellipsis", justify=side)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell.replace("\n", " ")) for cell in row))
    text = io.StringIO()
    Console(file=text, width=sum(widths) + gaps + 2, color_system=None, legacy_windows=False).print(table)
    return "\n".join([*(line.rstrip() for line in text.getvalue().splitlines()), *notes]) + "\n"
