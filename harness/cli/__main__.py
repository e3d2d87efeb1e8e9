"""``python -m harness.cli``: the same as ``geep-bench``."""

import sys

from harness.cli.main import main

sys.exit(main())
