"""Frozen models that others learn from: their output is computed once and read in every epoch."""
