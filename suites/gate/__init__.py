"""The regression gate: profile quick against a reference, history over commits, and what the gate can detect."""
