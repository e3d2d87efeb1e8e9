"""Structured pruning with distillation: units of the layers are removed while a student learns. May import the harness only."""
