"""Two cells belong together whichever of them is asked, and code counts inside a run only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.results.belonging import NO_FINGERPRINT, differences
from harness.results.schema import Binding

FEW = st.sampled_from(["a", "b"])
NAMES = st.sampled_from(["epochs", "clip", "head"])
BINDINGS = st.builds(
    Binding,
    test_rows=FEW,
    train_rows=FEW,
    backbone=FEW,
    max_length=st.sampled_from([64, 128]),
    training=st.dictionaries(NAMES, FEW),
    own=st.lists(NAMES, unique=True),
    fits=st.dictionaries(st.sampled_from(["bert", "geep"]), FEW),
    versions=st.dictionaries(st.sampled_from(["bert", "geep"]), FEW),
)


@settings(deadline=None, max_examples=60)
@given(BINDINGS, BINDINGS)
def test_belonging_is_symmetric(one: Binding, other: Binding) -> None:
    """Both directions agree; a cell belongs to itself; and more belongs together across versions of the code."""
    assert not differences(one, one)
    assert bool(differences(one, other)) == bool(differences(other, one))
    assert set(differences(one, other, across_code=True)) <= set(differences(one, other))
    assert differences(one, None) == differences(None, one) == [NO_FINGERPRINT]
    assert differences(None, None) == []


@settings(deadline=None, max_examples=60)
@given(BINDINGS, BINDINGS)
def test_every_shared_setting_counts(one: Binding, other: Binding) -> None:
    """A common setting must be equal unless one of the two methods has it for itself."""
    unequal = {key for key in {*one.training, *other.training} if one.training.get(key) != other.training.get(key)}
    found = {words.split()[0] for words in differences(one, other) if words.startswith("training.")}
    assert found == {f"training.{key}" for key in unequal - {*one.own, *other.own}}
