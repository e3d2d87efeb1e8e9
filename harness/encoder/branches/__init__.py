"""Parallel branches: several stacks of layers that continue from the same hidden states."""
