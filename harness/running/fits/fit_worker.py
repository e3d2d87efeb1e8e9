"""A worker of :class:`~harness.running.fits.fit_pool.FitPool`: reads fits to make as JSON lines, answers each with one line.

The first line has the run's settings, every other one a dataset, a seed and a method. An answer is ``{}`` or, if the fit failed,
``{"reason": ..., "fatal": ..., "traceback": ...}``.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from harness.running.fits.fit_maker import FitMaker, answer_of, settings_of_message


def main() -> int:
    """Fit until the input ends."""
    # Answers go to the real output; whatever a method prints goes with the warnings.
    answers, sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8"), sys.stderr
    first = json.loads(sys.stdin.readline())
    torch.set_num_threads(first["threads"])
    maker = FitMaker(settings_of_message(first))

    def fit(dataset: str, seed: int, method: str) -> None:
        maker.session(dataset, seed).fit(method)

    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(answer_of(lambda job=job: fit(**job))) + "\n")  # type: ignore[misc]
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
