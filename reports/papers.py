"""Write and print what a run's stored cells alone determine: the papers' tables, and tables and figures over all sets.

::

    python -m reports.papers RUN
    python -m reports.papers reports/published/NAME

Nothing is measured, and no per-sample rows, data or weights are needed, so published tables can be made again from a fresh clone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.core.command_line import exit_codes
from harness.core.errors import ResultError
from harness.core.files import write_atomic, write_text
from reports.analysis.view import View, build_view
from reports.figures.dataset_figures import draw_figures_over_sets
from reports.figures.drawing import Drawing
from reports.notation.table_formats import AnyTable, to_markdown, write_tables
from reports.tables.over_sets.depth_table import depth_tables
from reports.tables.over_sets.mean_table import mean_tables
from reports.tables.over_sets.rank_table import rank_tables
from reports.tables.paper_table import paper_tables


def stored_tables(view: View) -> list[AnyTable]:
    """Return the tables in the papers' form and, for a run of several sets, those over all sets."""
    return [*paper_tables(view), *mean_tables(view), *depth_tables(view), *rank_tables(view)]


def _write(drawing: Drawing, folder: Path) -> None:
    write_text(folder / f"{drawing.name}.svg", drawing.svg)
    write_atomic(folder / f"{drawing.name}.png", lambda temporary: temporary.write_bytes(drawing.png or b""))


@exit_codes("papers")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write tables and figures to ``RUN/report/`` and print the Markdown; return 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.papers", description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run folder, published or made by 'geep-bench run --out RUN'"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write here instead of RUN/report")
    options = parser.parse_args(arguments)
    view = build_view(options.run, samples=False)
    tables = stored_tables(view)
    if not any(row.kind == "method" for row in view.rows):
        raise ResultError(
            f"no row of kind 'method' in {options.run}: run at least one method, e.g. --methods bert,fastbert"
        )
    folder = options.out or options.run / "report"
    write_tables(tables, folder / "tables")
    for drawing in draw_figures_over_sets(view):
        _write(drawing, folder / "figures")
    sys.stdout.write("\n".join(to_markdown(table) for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
