"""A worker of :class:`~harness.running.fits.fit_pool.FitPool`: reads fits to make as JSON lines, answers each with one line.

The first line has the run's settings, every other one a dataset, a seed and a method. An answer is ``{}`` or, if the fit failed,
``{"reason": ..., "fatal": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from harness.core.errors import format_error, is_fatal
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session


def main() -> int:
    """Fit until the input ends."""
    # Answers go to the real output; whatever a method prints goes with the warnings.
    answers, sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8"), sys.stderr
    facts = json.loads(sys.stdin.readline())
    torch.set_num_threads(facts["threads"])
    data = None if facts["data"] is None else Path(facts["data"])
    settings = Settings(Profile(**facts["profile"]), Path("unused"), data, facts["device"])
    session: Session | None = None
    for line in sys.stdin:
        job = json.loads(line)
        if session is None or (session.dataset, session.seed) != (job["dataset"], job["seed"]):
            session = Session(settings, job["dataset"], job["seed"], quiet=True)
        answer: dict[str, object] = {}
        try:
            session.fit(job["method"])
        except Exception as error:  # noqa: BLE001 - the process that asked handles it
            answer = {"reason": format_error(error), "fatal": is_fatal(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
