"""What depth is worth on every set: test accuracy of the heads after layer 1, 2, ..., of one model.

From ``RUN/depth.json``, which ``python -m suites.studies.depth --out RUN/depth.json`` writes; without it, from the oracle's
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.core.errors import ResultError
from harness.core.names import clean_all
from harness.core.text_formats import read_json
from harness.results.run_folder import RunFolder
from reports.analysis.result_rows import ResultRow
from reports.analysis.verdicts.layer_answers import Reachable
from reports.analysis.verdicts.verdict_words import LEAST_DEPTH

NAME = "depth.json"


@dataclass(frozen=True, kw_only=True)
class DepthRow:
    """One set.

    Attributes:
        data: real or synthetic.
        dataset, label: of the set.
        heads: the method whose heads these are.
        accuracy: layer from 1 -> accuracy of its head, 0..1, in order of depth.
        n: test rows; None where not recorded.
        seeds: fits behind it.
    """

    data: str
    dataset: str
    label: str
    heads: str
    accuracy: dict[int, float]
    n: int | None
    seeds: int

    @property
    def synthetic(self) -> bool:
        return self.data == "synthetic"

    @property
    def worth(self) -> float:
        """Accuracy of the last head less that of the first."""
        values = [*self.accuracy.values()]
        return values[-1] - values[0]

    @property
    def counts(self) -> bool:
        """Whether depth is worth enough for claims about exits to rest on this set."""
        return self.worth > LEAST_DEPTH - 1e-9


def depth_rows(run: RunFolder, rows: Sequence[ResultRow], bounds: Sequence[Reachable]) -> list[DepthRow]:
    """Return a row for every set whose heads are known, in the order of the rows.

    Args:
        rows: of the view.
        bounds: of oracles, used for sets that the file lacks.

    Raises:
        ResultError: the file is there, but is not one of the study.
    """
    stored = {(row.data, row.dataset): row for row in _stored(run)}
    found = []
    for (data, dataset), label in {(row.data, row.dataset): row.label for row in rows}.items():
        if (one := stored.get((data, dataset))) is not None:
            found.append(DepthRow(**{**vars(one), "label": label}))
            continue
        bound = next((each for each in bounds if (each.data, each.dataset) == (data, dataset)), None)
        if bound is not None:
            facts = {"data": data, "dataset": dataset, "label": label, "heads": bound.oracle}
            found.append(DepthRow(**facts, accuracy=bound.by_layer, n=bound.n, seeds=bound.seeds))
    return found


def _stored(run: RunFolder) -> list[DepthRow]:
    path = run.path / NAME
    if not path.is_file():
        return []
    try:
        return [
            DepthRow(
                data="synthetic" if row["source"] == "embedded" else "real",
                dataset=str(row["dataset"]),
                label=str(row["dataset"]),
                heads=str(row["method"]),
                accuracy={
                    int(layer): float(value) for layer, value in zip(row["layers"], row["accuracy"], strict=True)
                },
                n=row.get("test_rows"),
                seeds=1,
            )
            for row in clean_all(read_json(path))["rows"]
            if row["layers"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(
            f"{path} is not a file of the study ({error}): write it with 'python -m suites.studies.depth --out {path}'"
        ) from error
