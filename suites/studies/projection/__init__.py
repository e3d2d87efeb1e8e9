"""Time on devices that one does not have: counted launches, a device card, calibration, and the check against measured times."""
