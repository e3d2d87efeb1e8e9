"""Twelve small synthetic twins of the twelve datasets, generated from a seed; no files, no network.

Honest label: a made-up language whose words carry meaning by a small grammar. Its easy samples are decided by one word
and its hard ones by composition, so that depth matters; it says nothing about accuracy on real English or Chinese.
"""

from harness.data.embedded.lexicon import vocabulary
from harness.data.embedded.twins import embedded_names, load_embedded, pretraining_texts, utterances

__all__ = ["embedded_names", "load_embedded", "pretraining_texts", "utterances", "vocabulary"]
