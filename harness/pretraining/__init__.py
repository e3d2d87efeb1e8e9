"""Backbones and general students from raw text. May import toolkit, results and everything below."""
