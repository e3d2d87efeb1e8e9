"""Which cell of a run to deploy: not worse than the reference, within bounds, and as quick as possible."""
