"""BERT at full depth: fine-tuned, truncated, compiled, quantised, exported. May import the harness only."""
