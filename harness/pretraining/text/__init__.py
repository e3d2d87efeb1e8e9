"""Raw text to batches of masked words: corpus, vocabulary, packing, shards.

May import what pretraining may, but not pretraining itself.
"""
