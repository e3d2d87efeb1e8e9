"""BERT itself, and what makes it faster without changing when it stops."""
