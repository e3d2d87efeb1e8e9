"""Runs the study: ``python -m suites.studies.distil_grid``."""

import sys

from suites.studies.distil_grid.grid_study import main

if __name__ == "__main__":
    sys.exit(main())
