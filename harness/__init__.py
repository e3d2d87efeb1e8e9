"""The referee: contracts, data, the encoder chassis, training, measurement and results.

Knows no method by name; methods come in through :mod:`harness.registry`.
"""

__version__ = "0.1.0"
