"""Colours of all figures: Okabe & Ito, "Color Universal Design" (2008), without its yellow, which is faint on white."""

from __future__ import annotations

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAIN, LOSS = OKABE_ITO[0], OKABE_ITO[1]
# Ink and paper are unusual greys, so that the page can replace them in a dark colour scheme.
INK, FAINT, PAPER = "#222324", "#D9DADB", "#FDFEFF"
GREYS = ("#6B6C6D", "#9A9B9C")
