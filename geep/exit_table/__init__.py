"""The exit table: counts which tokens occurred in samples that left at which exit, and predicts exits from them.

::

    table = ExitTable(num_layers=12)
    table.insert(train_tokens, exits)        # any number of times
    table.freeze(min_count=2)
    table.predict(tokens, quantile=0.7)      # int16 [N], layer indices 0 .. 11

All arithmetic is in integers, so every backend gives the same bits. ``keys`` defines the keys, ``columns`` what rows hold,
``rows`` their arithmetic, ``rules`` how sums of rows become exits, and ``backends/reference_backend.py`` is the specification
that other backends are tested against. May import ``harness.core`` and ``harness.kernels``.
"""

from geep.exit_table.table import ExitTable

__all__ = ["ExitTable"]
