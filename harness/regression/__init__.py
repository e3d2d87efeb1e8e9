"""Regression gate: comparison of two runs. May import measure, results and everything below."""
