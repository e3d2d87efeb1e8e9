"""BERT at full depth: fine-tuned, and truncated. May import the harness only."""
