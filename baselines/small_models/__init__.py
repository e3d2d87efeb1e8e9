"""Models without Transformer layers: bags of words and n-grams, matrix products, an LSTM, a CNN. May import the harness only."""
