"""Where samples come from: the twelve cards, and three sources that give the same thing.

``hub`` (:func:`~harness.data.hub.load_hub`), a ``local`` folder (:func:`~harness.data.local.load_local`) and the
``embedded`` twins (:func:`~harness.data.embedded.load_embedded`) all return a :class:`~harness.data.splits.RawDataset`.
"""
