"""Which cell of a run to deploy: not worse than the reference, within limits on latency and size, and as fast as possible."""
