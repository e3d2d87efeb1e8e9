"""Samples that a row answers before layer 1: how many, and how accurately, compared with full depth on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.paired_tests import mean_difference
from reports.analysis.result_rows import ResultRow
from reports.analysis.run_contents import Reader
from reports.analysis.verdicts.layer_answers import ACCURACY, layer_answers
from reports.notation.numbers import finite


@dataclass(frozen=True, kw_only=True)
class BeforeRow(ResultRow):
    """A row that can answer samples before layer 1; ``seeds`` counts those with per-sample rows.

    Attributes:
        share: of samples that were, 0..1, mean over seeds.
        accuracy_before, accuracy_full: of these answers, and of full depth on the same samples, 0..1, all seeds pooled; None
            where no sample was answered.
        gain, gain_low, gain_high: what these answers change in the accuracy over all samples, 0..1, with 95 % interval: per test
            row the mean over seeds; None below two rows.
    """

    share: float
    accuracy_before: float | None
    accuracy_full: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None


def answers_before(rows: Sequence[ResultRow], read: Reader) -> list[BeforeRow]:
    """Return the rows whose samples say what answers before layer 1 and what full depth would answer, in the given order."""
    found = []
    for row in rows:
        frames = [frame for cell in row.cells if (frame := read(cell)) is not None and len(frame)]
        depth = int(row.depth) if finite(row.depth) else 0
        known = [(frame, one) for frame in frames if (one := layer_answers(frame, depth)) is not None and one.before]
        if not known:
            continue
        left = [frame["exit_layer"].to_numpy() == 0 for frame, _ in known]
        ours = [one.before[ACCURACY] for _, one in known]
        full = [one.good[ACCURACY][:, -1] for _, one in known]
        answered = np.concatenate(left)
        change = None
        if len({len(one) for one in left}) == 1:
            changes = [np.where(on, a.astype(float) - b, 0.0) for on, a, b in zip(left, ours, full, strict=True)]
            change = mean_difference(np.mean(changes, axis=0))
        found.append(
            BeforeRow(
                **{**vars(row), "seeds": len(known)},
                share=float(np.mean([one.mean() for one in left])),
                accuracy_before=float(np.concatenate(ours)[answered].mean()) if answered.any() else None,
                accuracy_full=float(np.concatenate(full)[answered].mean()) if answered.any() else None,
                gain=change.mean if change else None,
                gain_low=change.low if change else None,
                gain_high=change.high if change else None,
            )
        )
    return found
