"""The command line ``geep-bench``. May import every room of the harness; no room imports it."""
