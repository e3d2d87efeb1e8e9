"""Verdicts: rows tested against controls and rivals, on the same test rows. May import the other analyses except the view."""
