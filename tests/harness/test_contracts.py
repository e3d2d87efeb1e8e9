"""A class has an optional capability if it has its attributes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness import contracts
from harness.running.variants import Variant

CAPABILITIES: dict[str, dict[str, Any]] = {
    "HasRole": {"role": "oracle"},
    "HasSettings": {"settings": dict},
    "NamesPoints": {"point_names": lambda config: ["full"]},
    "NamesContent": {"named_content": lambda config: None},
    "UsesWordHead": {"uses_word_head": lambda config: True},
    "UsesUnlabelled": {"uses_unlabelled": lambda config: True},
    "LearnsInStages": {
        "choices": frozenset({"speeds"}),
        "weights_version": 1,
        "train_weights": lambda *given, config, seed: given,
        "choose": lambda weights, task, *, config, seed: weights,
    },
    "DistilsGenerally": {"general_recipe": {}, "general_distillation": lambda teacher, *, config, dropout: None},
    "Foresees": {"foresee": lambda tokens, *, at: None},
    "AnswersAtDepths": {"depth_answers": lambda tokens, *, at: ([0], None)},
    "CountsKeyHits": {"key_hits": lambda tokens, *, at: (0, 1)},
    "HasExecutor": {"executor": "own"},
    "HasCompute": {"compute": None},
    "HasTraining": {"training": None},
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_capability_is_recognised_by_its_attributes(name: str) -> None:
    """All attributes must be there; other attributes do not matter."""
    protocol, parts = getattr(contracts, name), CAPABILITIES[name]
    assert isinstance(SimpleNamespace(**parts, other=1), protocol)
    for part in parts:
        assert not isinstance(SimpleNamespace(**{key: value for key, value in parts.items() if key != part}), protocol)


@pytest.mark.parametrize(
    "name", ["HasRole", "HasSettings", "NamesPoints", "NamesContent", "UsesWordHead", "UsesUnlabelled"]
)
def test_a_variant_inherits_the_capabilities_of_its_base(name: str) -> None:
    """A variant has the role, settings, points and content of its base, and no capability that the base lacks."""
    plain = {"name": "base", "kind": "method", "needs": (), "version": 1, "fit": None, "load": None}
    protocol, parts = getattr(contracts, name), CAPABILITIES[name]
    variant = Variant("v", SimpleNamespace(**plain, **parts), {})  # type: ignore[arg-type]
    assert isinstance(variant, protocol)
    assert all(getattr(variant, key) is value for key, value in parts.items())
    assert not isinstance(Variant("v", SimpleNamespace(**plain), {}), protocol)  # type: ignore[arg-type]


def test_a_variant_learns_in_the_stages_of_its_base() -> None:
    """It trains the base's weights with teachers by role; choices, their stage and the version of weights are the base's."""
    plain = {"name": "base", "kind": "method", "needs": ("bert",), "version": 1, "fit": None, "load": None}
    parts = CAPABILITIES["LearnsInStages"]
    variant: Any = Variant("v", SimpleNamespace(**plain, **parts), {"bert": "other"})  # type: ignore[arg-type]
    assert isinstance(variant, contracts.LearnsInStages)
    assert all(getattr(variant, key) is parts[key] for key in ("choices", "weights_version", "choose"))
    given = variant.train_weights("task", "backbone", {"other": "fit"}, config={}, seed=0)
    assert given == ("task", "backbone", {"bert": "fit"})
    assert not isinstance(Variant("v", SimpleNamespace(**plain), {}), contracts.LearnsInStages)  # type: ignore[arg-type]
