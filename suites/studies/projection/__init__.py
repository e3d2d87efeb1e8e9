"""Projected times on other devices: counted launches, a device card, calibration, and the check against measured times."""
