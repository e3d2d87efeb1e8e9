"""``geep-bench run`` on many machines, see :mod:`harness.running.ray_launcher`.

::

    python -m harness.cli.distributed run --profile paper --out /shared/runs/paper

takes the options of ``geep-bench run``. Make the report once at the end, with ``geep-bench report``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness.cli.main import settings_of
from harness.cli.run_options import parser
from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError
from harness.running import ray_launcher


@exit_codes("distributed", resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.command != "run":
        raise ConfigError("only 'run' goes to many machines: python -m harness.cli.distributed run --profile P ...")
    if args.dry_run:
        raise ConfigError("--dry-run needs no other machines: use it with geep-bench run")
    settings = settings_of(args)
    outcome = ray_launcher.launch(settings)
    print(f"cells: {outcome.measured} measured, {outcome.kept} kept from before, {outcome.failed} failed")
    print(f"now make the report: geep-bench report {settings.out}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
