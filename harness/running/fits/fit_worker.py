"""A worker of :class:`~harness.running.fits.fit_pool.FitPool`: reads fits to make as JSON lines, answers each with one line.

The first line has the run's settings, every other one a dataset, a seed and a method. An answer is ``{}`` or, if the fit failed,
``{"reason": ..., "fatal": ..., "traceback": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import torch

from harness.core.errors import format_error, is_fatal
from harness.encoder.backbone import Backbone
from harness.measure.resources import advice
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
    # Data and backbones stay, as the next fit may be of any dataset and seed; fits of the last one only.
    loaded: dict[str, Session] = {}
    backbones: dict[tuple[str, str], Backbone] = {}
    session: Session | None = None
    for line in sys.stdin:
        job = json.loads(line)
        dataset, seed = job["dataset"], job["seed"]
        answer: dict[str, object] = {}
        try:
            if session is None or (session.dataset, session.seed) != (dataset, seed):
                if dataset not in loaded:
                    loaded[dataset] = Session(settings, dataset, seed, quiet=True, backbones=backbones)
                _ = loaded[dataset].prepared
                session = loaded[dataset].with_seed(seed)
            session.fit(job["method"])
        except Exception as error:  # noqa: BLE001 - the process that asked handles it
            reason, trace = f"{format_error(error)}{advice(error)}", "".join(traceback.format_exception(error))
            answer = {"reason": reason, "fatal": is_fatal(error), "traceback": trace}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
