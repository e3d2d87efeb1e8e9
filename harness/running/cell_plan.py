"""The stored list of the cells of a fitted method: ``plan/<dataset>--<method>--seed<k>.json`` in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.core.names import LONGEST_FILE_NAME, check_name
from harness.core.text_formats import read_json
from harness.results.run_folder import RunFolder


@dataclass(frozen=True)
class CellPlan:
    """The stored list of a fitted method's cells.

    Attributes:
        path: the file.
        key: content key of the settings and data they came from; empty if there is no plan.
        cells: names of their results (:func:`harness.results.run_folder.stem`).
    """

    path: Path
    key: str = ""
    cells: tuple[str, ...] = ()

    @classmethod
    def read(cls, run: RunFolder, dataset: str, method: str, seed: int) -> CellPlan:
        """Read a plan. A damaged one counts as missing: its method is fitted, or loaded, to list its cells again.

        Its cells are deleted when settings change, so a plan with a name that could leave the folder counts as damaged.
        """
        path = run.path / "plan" / f"{dataset}--{method}--seed{seed}.json"
        try:
            plan = read_json(path)
            names = tuple(check_name(name, longest=LONGEST_FILE_NAME) for name in plan["cells"])
            return cls(path, plan["key"], names) if isinstance(plan["key"], str) else cls(path)
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)
