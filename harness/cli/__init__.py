"""The command line ``geep-bench``. May import all rooms of the harness; no room imports it."""

from harness.core.command_line import hide_interrupts

hide_interrupts()
