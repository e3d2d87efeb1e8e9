"""GEEP, the method under study: early exits predicted from the tokens before a layer has run. May import ``harness`` only.

Li et al., Frontiers of Computer Science 2024, doi 10.1007/s11704-022-2341-9.
"""
