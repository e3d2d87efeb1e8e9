"""The figure that a report opens with: which numbers its points have."""

from __future__ import annotations

import pytest

from reports.analysis.view import build_view
from reports.figures.answer_figure import changes


def test_accuracy_is_lost_against_the_reference_of_the_same_backbone(fabricate):
    """With two backbones in one run, methods of the smaller one have not lost what that one lacks."""
    run = fabricate("two-backbones")
    for backbone, full, early in (("large", 0.9, 0.88), ("small", 0.8, 0.79)):
        run.cell("bert", backbone=backbone, accuracy=full, binding={"backbone": backbone})
        run.cell("geep", "speed=0.5", backbone=backbone, accuracy=early, speedup=2.0, binding={"backbone": backbone})
    run.cell("geep", "speed=0.5", backbone="other", accuracy=0.7, speedup=2.0, binding={"backbone": "other"})
    view = build_view(run.path)
    (group,) = view.groups
    found = {(point.row.method, point.row.backbone): point.accuracy for point in changes(view.of(group))}
    assert found == {
        ("bert", "large"): 0.0,
        ("geep", "large"): pytest.approx(-0.02),
        ("bert", "small"): 0.0,
        ("geep", "small"): pytest.approx(-0.01),
    }
