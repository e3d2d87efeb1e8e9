"""How numbers and footnotes are written."""
