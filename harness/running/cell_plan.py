"""The stored list of the cells of a fitted method: ``plan/<dataset>--<method>--seed<k>.json`` in the run folder."""

from __future__ import annotations

from collections.abc import Iterable
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

    def fits(self, name: str, key: str) -> bool:
        """Return whether a result is stored and comes from settings, data and weights with a key.

        The plan alone does not tell: files of two runs may lie in one folder, after a copy or if a node of a cluster was killed.
        Its key counts for results of older versions, which have none.
        """
        found = self._result_key(name)
        return found == key or (found == "" and self.key == key)

    def others(self, key: str, names: Iterable[str] = ()) -> list[str]:
        """Return the cells, and results among ``names``, that come from other settings, data or weights than ``key``.

        If the plan is of other settings itself, they include cells without a readable result.
        """
        nothing = self.key == key
        every = dict.fromkeys([*self.cells, *names])
        return [one for one in every if not (self.fits(one, key) or (nothing and self._result_key(one) is None))]

    def _result_key(self, name: str) -> str | None:
        """Return the key in a stored result, empty in those of older versions; ``None`` if there is none or it is broken."""
        try:
            return str(read_json(self.path.parents[1] / "results" / f"{name}.json").get("key", ""))
        except (OSError, ValueError, AttributeError):
            return None
