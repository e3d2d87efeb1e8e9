"""Small synthetic twins of the datasets, generated from a seed: no files, no network.

The texts are in a made-up language with a small grammar. One word decides easy samples; hard samples need composition, so
that depth matters. Accuracy on this data says nothing about real English or Chinese.
"""

from harness.data.embedded.lexicon import vocabulary
from harness.data.embedded.twins import load_embedded, pretraining_texts

__all__ = ["load_embedded", "pretraining_texts", "vocabulary"]
