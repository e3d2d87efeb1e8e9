"""Answers of single test samples: their columns, their form as bits, and all rows of a run in one file. May import core only."""
