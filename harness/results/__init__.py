"""Stored results: the schema, run folders and packed runs. May import core only."""
