"""Text forms: numbers, footnote marks, and tables as Markdown, CSV and LaTeX. Imports nothing else of ``reports``."""
