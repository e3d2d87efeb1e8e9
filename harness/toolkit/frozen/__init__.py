"""Models that do not change while others learn from them: what they say is computed once and read in every epoch."""
