"""Studies: programs that answer one question each, run with ``python -m suites.studies.NAME``."""
