"""Models without Transformer layers: what they are, how they run, are stored and learn. May import the toolkit."""
