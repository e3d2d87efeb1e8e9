"""Benchmarks that pytest collects, profiles, the regression gate, and studies. Imports ``harness`` and ``geep.exit_table`` only."""
