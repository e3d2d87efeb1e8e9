"""Smaller students of BERT. May import the harness only."""
