"""Studies of encoders: every family against `transformers`, and layers on few bits."""
