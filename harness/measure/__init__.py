"""What is measured and how: timed passes, validation, diagnostics, resources, statistics.

May import results, execution and everything below.
"""
