"""The exit table: which tokens occurred in samples that exited where, and the prediction made from it.

::

    table = ExitTable(num_layers=12)
    table.insert(train_tokens, exits)        # as often as needed
    table.freeze(min_count=2)
    table.predict(tokens, quantile=0.7)      # int16 [N], layer indices 0 .. 11

Integers only, so every backend gives the same bits. ``keys`` states what a key is, ``rows`` the arithmetic,
``backends/reference.py`` is the specification that other backends are tested against.
"""

from geep.exit_table.table import ExitTable

__all__ = ["ExitTable"]
