"""Turns a profile into finished cells: profiles, variants, sessions, the grid. May import measure, toolkit and rooms below."""
