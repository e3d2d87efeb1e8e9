"""Tables over all sets of a run: what depth is worth, methods at equal cost, average ranks."""
