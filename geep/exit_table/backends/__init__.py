"""Backends of the exit table, equal bit for bit. A new one is a file here and a line in ``selection``."""
