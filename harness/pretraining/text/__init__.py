"""From raw text to batches with masked words: corpus, vocabulary, packing, shards, masking.

May import what pretraining may, but not pretraining itself.
"""
