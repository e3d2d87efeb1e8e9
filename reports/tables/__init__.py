"""Tables: which there are, and how a table becomes Markdown, CSV or LaTeX."""
