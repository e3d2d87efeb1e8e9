"""Fits: the folders of the cache that hold them, and worker processes that make several at a time."""
