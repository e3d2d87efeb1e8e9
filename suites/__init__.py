"""Benchmarks that pytest collects, profiles, the regression gate, and studies. Imports ``harness`` and ``geep.exit_table`` only."""

from harness.core.command_line import hide_interrupts

hide_interrupts()
