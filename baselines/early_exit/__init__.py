"""Methods that choose an exit layer per sample or token. May import the harness only."""
