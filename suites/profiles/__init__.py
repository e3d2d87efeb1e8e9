"""Profiles: TOML files, one per way of measuring. See :mod:`harness.profile` for the keys."""
