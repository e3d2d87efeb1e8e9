"""Write and print a run in the form of the papers' tables (FastBERT's Table 2).

Run it as ``python -m reports.papers RUN``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.core.command_line import exit_codes
from harness.core.errors import ResultError
from reports.analysis.view import build_view
from reports.notation.table_formats import to_markdown, write_tables
from reports.tables.paper_table import paper_tables


@exit_codes("papers")
def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``RUN/report/tables/paper-*`` and print the Markdown; return 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.papers", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, as made by 'geep-bench run --out RUN'")
    options = parser.parse_args(arguments)
    tables = paper_tables(build_view(options.run, samples=False))
    if not tables:
        raise ResultError(
            f"no row of kind 'method' in {options.run}: run at least one method, e.g. --methods bert,fastbert"
        )
    write_tables(tables, options.run / "report" / "tables")
    sys.stdout.write("\n".join(to_markdown(table) for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
