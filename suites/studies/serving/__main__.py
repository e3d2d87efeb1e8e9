"""Runs the study: ``python -m suites.studies.serving``."""

import sys

from suites.studies.serving.load_study import main

if __name__ == "__main__":
    sys.exit(main())
