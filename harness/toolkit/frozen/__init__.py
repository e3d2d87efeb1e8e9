"""Models that do not change while others learn from them: their output is computed once and read in every epoch."""
