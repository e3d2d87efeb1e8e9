"""A search for training settings: its plan, and its record, which has every trial with its dev score and the settings that won.

:mod:`suites.studies.search` writes it; ``geep-bench run --tuned FILE`` trains with its winners and stores it with the results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from harness.core.errors import ResultError
from harness.core.names import Name
from harness.core.settings import StrictSettings
from harness.core.text_formats import read_json
from harness.results.strict_record import StrictRecord

SUITE = "search"
MOST_FITS = 12  # of one method in a search, over all datasets


class SearchPlan(StrictSettings):
    """The trials of a search for training settings (``suites.studies.search``).

    Attributes:
        datasets: sets whose dev splits decide.
        trials: settings to try, for every method that is not in ``own``.
        own: method -> as many trials, where its settings have other names, or its rates another range; for its variants, too.
    """

    datasets: list[Name] = Field(min_length=1)
    trials: list[dict[str, Any]] = Field(min_length=1)
    own: dict[Name, list[dict[str, Any]]] = Field(default_factory=dict)

    @field_validator("trials")
    @classmethod
    def _few(cls, trials: list[dict[str, Any]], known: ValidationInfo) -> list[dict[str, Any]]:
        fits = len(trials) * len(known.data.get("datasets", ()))
        if fits > MOST_FITS:
            raise ValueError(
                f"{fits} fits per method, and at most {MOST_FITS} are allowed: give fewer trials or datasets"
            )
        return trials

    @field_validator("own")
    @classmethod
    def _equal(cls, own: dict[str, list[dict[str, Any]]], known: ValidationInfo) -> dict[str, list[dict[str, Any]]]:
        count = len(known.data.get("trials", ()))
        for name, trials in own.items():
            if count and len(trials) != count:
                raise ValueError(f"'{name}' has {len(trials)} trials, and every method must have {count}")
        return own


class Trial(StrictRecord):
    """One fit of a search.

    Attributes:
        settings: that were tried.
        score: on dev by the criterion of :mod:`harness.toolkit.dev_scores`, 0..1; ``None`` if training failed.
        exits: dev accuracy of every answering layer.
        best_epoch: epoch that was kept, from 1; ``None`` for the last one by rule.
        epochs: that were allowed.
        steps: of the optimiser, teachers included.
        seconds: of training, teachers included.
        failed: why there is no score, or why the trial counts as not converged; empty if it converged.
    """

    dataset: str
    seed: int
    method: str
    settings: dict[str, Any]
    dev_rows: int
    score: float | None = None
    exits: list[float] = []
    best_epoch: int | None = None
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0
    failed: str = ""


class SearchRecord(StrictRecord):
    """All trials of a search.

    Attributes:
        datasets: the sets whose dev splits were used.
        trials: in the order in which they were made.
        best: method -> settings that won.
    """

    datasets: list[str]
    trials: list[Trial]
    best: dict[str, dict[str, Any]]

    def of(self, method: str) -> list[Trial]:
        """Return the trials of one method."""
        return [trial for trial in self.trials if trial.method == method]


def winner(trials: Sequence[Trial]) -> dict[str, Any] | None:
    """Return the settings with the highest mean score over datasets and seeds, the first of equals.

    Only settings that converged everywhere count; ``None`` if there are none.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:  # stored ones may name their settings in another order
        groups.setdefault(json.dumps(trial.settings, sort_keys=True), []).append(trial)
    everywhere = {(trial.dataset, trial.seed) for trial in trials}
    means = {
        key: sum(one.score or 0.0 for one in group) / len(group)
        for key, group in groups.items()
        if {(one.dataset, one.seed) for one in group} == everywhere and not any(one.failed for one in group)
    }
    return dict(groups[max(means, key=lambda key: means[key])][0].settings) if means else None


def read_search(path: Path) -> SearchRecord:
    """Read a finished search.

    Raises:
        ResultError: the file is missing, damaged, of another program, or of a search that has not ended.
    """
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot read the search {path} ({error}): give a file of suites.studies.search") from error
    if not isinstance(data, dict) or data.get("suite") != SUITE:
        raise ResultError(f"{path} is no search: give a file of suites.studies.search")
    if not data.get("complete"):
        raise ResultError(f"the search {path} has not ended: run the same command again, which resumes it")
    try:
        return SearchRecord.model_validate({key: data.get(key) for key in SearchRecord.model_fields})
    except ValidationError as error:
        raise ResultError(f"{path} is damaged ({error.errors()[0]['msg']}): make it again") from error
