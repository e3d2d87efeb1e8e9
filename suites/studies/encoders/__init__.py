"""Studies of encoders: every family against `transformers`, and layers in low precision."""
