"""Models that are no stack of Transformer layers: bags of n-grams and of word vectors. May import the harness only."""
