"""Runs the study: ``python -m suites.studies.projection``."""

import sys

from suites.studies.projection.projection_command import main

if __name__ == "__main__":
    sys.exit(main())
