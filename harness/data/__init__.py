"""Datasets: the cards, and three sources that return the same :class:`~harness.data.splits.RawDataset`.

The sources are the hub (:mod:`.hub`), a local folder (:mod:`.local`) and the embedded synthetic data (:mod:`.embedded`).
May import core only.
"""
