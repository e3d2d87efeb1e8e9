"""Executors that put samples into new batches on the way, when more is known about them."""
