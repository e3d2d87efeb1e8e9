"""Figures as SVG and PNG. Imports ``reports.analysis`` and ``reports.notation``."""
