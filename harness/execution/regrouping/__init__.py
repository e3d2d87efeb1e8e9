"""Executors that form new batches during a pass, when more is known about the samples."""
