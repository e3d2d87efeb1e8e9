"""Smaller students of BERT."""
