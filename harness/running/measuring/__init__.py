"""Measuring the cells of a fitted method: which of them are timed, in which groups, and what that costs."""
