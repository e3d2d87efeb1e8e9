"""Two runs compared: what changed, and whether it is a regression. May import results, measure and core."""
