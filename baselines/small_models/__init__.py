"""Models that are no stack of Transformer layers: bags of words and of n-grams, an LSTM and a CNN. May import the harness only."""
