"""The command line ``geep-bench``. May import all rooms of the harness; no room imports it."""
