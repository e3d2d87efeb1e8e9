"""Measurement: timed passes, validation of answers, diagnostics, resources, speed-up factors, statistics.

May import results, execution and everything below.
"""
