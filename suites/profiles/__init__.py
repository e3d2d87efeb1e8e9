"""Profiles: TOML files, one per way of measuring. See :mod:`harness.running.profile` for the keys."""
