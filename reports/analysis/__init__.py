"""From a run folder to typed rows: means over seeds, paired tests, curves. Imports ``reports.notation`` only."""
