"""Layers that stand beside each other: several continue from the same states."""
