"""The committed reference against runs that lack something: the gate does not pass."""

from __future__ import annotations

import pytest

from harness.core.errors import ResultError
from harness.regression.compare import compare
from harness.results.packed_run import PackedRun, load
from suites.gate.reference import expected


@pytest.fixture(scope="module")
def reference() -> PackedRun:
    """The cells of two methods, without times."""
    run = load(expected("quick"))
    cells = [cell for cell in run.cells if cell.cell.method in ("bert", "geep")]
    return run.model_copy(
        update={"cells": [one.model_copy(update={"round_seconds": [], "reference_seconds": []}) for one in cells]}
    )


def without_fingerprints(run: PackedRun) -> PackedRun:
    """Return a run as an older version packed it."""
    cells = [cell.model_copy(update={"binding": None}) for cell in run.cells]
    return run.model_copy(update={"cells": cells, "bindings": []})


def test_the_reference_passes_against_itself(reference: PackedRun) -> None:
    """With fingerprints or, as an older version packed it, without."""
    assert compare(reference, reference).alarms == []
    found = compare(without_fingerprints(reference), reference)
    assert found.alarms == []
    assert len([remark for remark in found.remarks if "could not be checked" in remark]) == 1


def test_a_lost_method_does_not_pass(reference: PackedRun) -> None:
    """Each dataset without it is named."""
    kept = [cell for cell in reference.cells if cell.cell.method != "geep"]
    found = compare(reference, reference.model_copy(update={"cells": kept}))
    assert not found.regressions
    assert sorted(gap.partition(":")[0] for gap in found.gaps) == sorted(
        f"{name} geep" for name in {cell.cell.dataset for cell in reference.cells}
    )


def test_other_labels_do_not_pass(reference: PackedRun) -> None:
    """Without fingerprints, labels and tokens that changed are found by what the reference has of them."""
    for change in ({"rows": "0" * 16}, {"tokens": 1}):
        other = [reference.cells[0].model_copy(update=change), *reference.cells[1:]]
        found = compare(without_fingerprints(reference), reference.model_copy(update={"cells": other}))
        assert len(found.gaps) == 1 and "not compared" in found.gaps[0]
        every = [cell.model_copy(update=change) for cell in reference.cells]
        with pytest.raises(ResultError, match="nothing to compare"):
            compare(without_fingerprints(reference), reference.model_copy(update={"cells": every}))
