"""Two cells belong together whichever of them is asked, and code counts inside a run only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.results.comparability import NO_FINGERPRINT, differences, thread_differences, training_differences
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
    precision=st.sampled_from([None, "float32", "bfloat16"]),
    fit_threads=st.sampled_from([None, 1, 2]),
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


@settings(deadline=None, max_examples=60)
@given(BINDINGS, BINDINGS)
def test_precision_and_threads_of_training_count(one: Binding, other: Binding) -> None:
    """Inside a run both must be equal; across runs precision must, where both recorded it. What differs is always named."""
    inside, across = (" ".join(differences(one, other, across_code=code)) for code in (False, True))
    named = " ".join(training_differences(one, other))
    for words, key in (("precision of training", "precision"), ("threads per fit", "fit_threads")):
        ours, theirs = getattr(one, key), getattr(other, key)
        assert (words in inside) == (words in named) == (ours != theirs)
        assert (words in across) == (key == "precision" and ours != theirs and None not in (ours, theirs))


def test_words_for_what_differs() -> None:
    """Both values are named, and an older result says that it did not record its own."""
    one = Binding(
        test_rows="",
        train_rows="",
        backbone="",
        max_length=8,
        training={},
        own=[],
        fits={},
        versions={},
        precision="float32",
    )
    other = one.model_copy(update={"precision": None, "fit_threads": 2})
    assert differences(one, other) == [
        "precision of training (float32 and not recorded)",
        "threads per fit (not recorded and 2)",
    ]
    assert training_differences(one, other, known=True) == []
    assert thread_differences(1, 2) == ["threads while measuring (1 and 2)"]
    assert thread_differences(1, 1) == thread_differences(None, 2) == []
