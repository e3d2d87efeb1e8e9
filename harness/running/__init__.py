"""From a profile to finished cells: profile, variants, sessions, the grid. May import measure, toolkit and everything below."""
