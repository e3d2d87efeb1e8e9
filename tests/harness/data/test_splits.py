"""Carving, limiting and checking splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import DataError
from harness.data.splits import (
    RawDataset,
    RawSplit,
    carve_dev,
    check_known_labels,
    check_split,
    count_labels,
    limit,
    limit_dataset,
)


def split_of(labels, texts=None, pairs=None):
    labels = np.asarray(labels, dtype=np.int64)
    return RawSplit(texts or [f"text {i}" for i in range(len(labels))], pairs, labels)


labels_lists = st.lists(st.integers(0, 4), min_size=2, max_size=60)


@given(labels_lists.filter(lambda labels: len(set(labels)) < len(labels)), st.integers(0, 3))
def test_carving_partitions_and_keeps_every_class_in_train(labels, seed):
    """Train and dev together are the rows of train once each, in order, and no class leaves train."""
    whole = split_of(labels)
    train, dev = carve_dev(whole, 0.1, seed)
    rows = [int(text.split()[1]) for text in train.texts], [int(text.split()[1]) for text in dev.texts]
    assert sorted(rows[0] + rows[1]) == list(range(len(labels)))
    assert rows[0] == sorted(rows[0])
    assert rows[1] == sorted(rows[1])
    assert set(train.labels) == set(labels)
    for label in set(labels):
        expected = min(max(1, round(0.1 * labels.count(label))), labels.count(label) - 1)
        assert (dev.labels == label).sum() == expected


def test_carving_is_deterministic():
    """The same seed carves the same rows, another seed carves others."""
    whole = split_of([0, 1] * 100)
    assert carve_dev(whole)[1].texts == carve_dev(whole)[1].texts != carve_dev(whole, seed=1)[1].texts


def test_carving_nothing_is_an_error():
    """If every class has a single row, the error asks for a dev file."""
    with pytest.raises(DataError, match="no class has two rows"):
        carve_dev(split_of([0, 1, 2]))


@given(labels_lists, st.integers(1, 70))
def test_limit_keeps_order_size_and_shares(labels, n):
    """A limited split has min(n, N) rows in file order, each class within a row or so of its share."""
    whole = split_of(labels)
    few = limit(whole, n)
    assert len(few) == min(n, len(labels))
    rows = [int(text.split()[1]) for text in few.texts]
    assert rows == sorted(set(rows))
    assert [labels[row] for row in rows] == few.labels.tolist()
    classes = len(set(labels))
    for label in set(labels):
        share = labels.count(label) * len(few) / len(labels)
        assert abs((few.labels == label).sum() - share) <= classes
        if n >= classes:
            assert (few.labels == label).sum() >= 1


@pytest.mark.parametrize("n", [0, -3])
def test_limit_below_one_is_an_error(n):
    """Zero rows after a limit is refused with the option to change."""
    with pytest.raises(DataError, match="--max-train"):
        limit(split_of([0, 1, 0, 1]), n)


def dataset_of(train, dev, test):
    return RawDataset("toy", "en", 2, ["a", "b"], "local", split_of(train), split_of(dev), split_of(test))


def test_limits_of_a_dataset():
    """Train and test follow their limits; dev follows train's, but keeps enough rows to choose thresholds on."""
    few = limit_dataset(dataset_of([0, 1] * 500, [0, 1] * 300, [0, 1] * 50), max_train=400, max_test=7)
    assert [len(few.train), len(few.dev), len(few.test)] == [400, 200, 7]
    many = limit_dataset(dataset_of([0, 1] * 4000, [0, 1] * 1000, [0, 1]), max_train=2000)
    assert len(many.dev) == 1000
    assert "dev limited to 1000 of 2000 rows, stratified, seed 0" in many.notes
    more = limit_dataset(dataset_of([0, 1] * 4000, [0, 1] * 1000, [0, 1]), max_train=6000)
    assert len(more.dev) == 1500
    assert len(limit_dataset(dataset_of([0, 1] * 500, [0, 1] * 300, [0, 1]), max_train=400, max_dev=30).dev) == 30


def test_dev_has_at_most_its_share_of_train():
    """Dev has at most ``dev_share`` rows for each train row that is kept, whatever is asked for; a note says so."""
    whole = dataset_of([0, 1] * 500, [0, 1] * 300, [0, 1])
    unlimited = limit_dataset(whole)
    assert len(unlimited.dev) == 500
    assert unlimited.notes == [
        "dev limited to 500 of 600 rows, stratified, seed 0: dev_share allows 0.5 x 1000 train rows"
    ]
    assert not unlimited.remarks
    small = limit_dataset(whole, max_train=40)
    assert (len(small.dev), small.remarks) == (20, [])
    as_quick = limit_dataset(dataset_of([0, 1] * 1500, [0, 1] * 500, [0, 1]), max_train=1000, max_dev=500)
    assert as_quick.notes[-1] == "dev limited to 500 of 1000 rows, stratified, seed 0" and not as_quick.remarks
    overruled = limit_dataset(whole, max_train=200, max_dev=300, dev_share=0.3)
    assert len(overruled.dev) == 60
    assert overruled.remarks == ["dev has 60 rows, not 300: dev_share allows 0.3 x 200 train rows"]
    assert any("60 of 600 rows, stratified, seed 0: dev_share allows 0.3 x 200" in note for note in overruled.notes)
    assert len(limit_dataset(whole, max_train=200, max_dev=150, dev_share=1.0).dev) == 150


@given(st.integers(4, 300), st.integers(4, 300), st.floats(0.5, 1), st.none() | st.integers(4, 400))
def test_the_share_is_never_exceeded(train, dev, share, most):
    """However many rows there are and are asked for, dev keeps its share of train at most, and all rows below it."""
    limited = limit_dataset(dataset_of([0, 1] * train, [0, 1] * dev, [0, 1]), max_dev=most, dev_share=share)
    allowed = int(2 * train * share + 1e-6)
    assert len(limited.dev) == min(2 * dev, allowed, most or 2 * dev)


@pytest.mark.parametrize(
    ("train", "dev", "limits", "advice"),
    [
        (20, 10, {"max_train": 3}, "dev_share allows 0.5 x 3 train rows, so allow more train rows, or raise dev_share"),
        (20, 10, {"dev_share": 0.05}, "dev_share allows 0.05 x 20 train rows"),
        (20, 10, {"max_dev": 1}, "set --max-dev to 2 or more"),
        (20, 1, {}, "add rows to dev"),
    ],
)
def test_dev_needs_a_row_per_class(train, dev, limits, advice):
    """A dev split with fewer rows than classes is refused, with the limit that is in the way."""
    toy = dataset_of([0, 1] * (train // 2), [i % 2 for i in range(dev)], [0, 1])
    with pytest.raises(DataError, match="dataset 'toy': dev would have 1 row for 2 classes") as caught:
        limit_dataset(toy, **limits)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_that_leave_nothing_to_learn():
    """A limit of zero rows, or one that leaves a single class, is an error that names the dataset."""
    toy = dataset_of([0, 1] * 10, [0, 1], [0, 1])
    with pytest.raises(DataError, match="'toy': 0 rows would be left"):
        limit_dataset(toy, max_train=0)
    with pytest.raises(DataError, match="'toy': --max-train 1 leaves one class"):
        limit_dataset(toy, max_train=1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 2], "leaves gaps.*without 1"),
        ([1, 2, 1], "leaves gaps.*without 0"),
        ([3, 3], "is 3 in every row"),
        ([-1, 0, 1], "negative labels"),
    ],
)
def test_label_sets_that_make_no_sense(labels, message):
    """Gaps, a constant and negative labels are refused."""
    with pytest.raises(DataError, match=f"train.csv.*{message}"):
        count_labels(split_of(labels), "train.csv")


def test_ids_as_labels_are_refused_at_once():
    """A label of a billion, or a number of its own for every row, is refused without a list of all classes."""
    with pytest.raises(DataError, match="leaves gaps: labels are 0, 7, 1000000000, without 1, 2, 3, 4, 5: "):
        count_labels(split_of([0, 7, 10**9]), "f")
    with pytest.raises(DataError, match="has 1500 values in 2000 rows: it holds ids"):
        count_labels(split_of([*range(1500), *range(500)]), "f")


def test_known_number_of_classes():
    """With the number of classes known, train may lack some but must not exceed it."""
    assert count_labels(split_of([0, 2]), "f", 4) == 4
    with pytest.raises(DataError, match="goes up to 4, but the dataset has 4 classes"):
        count_labels(split_of([0, 4]), "f", 4)
    with pytest.raises(DataError, match="goes up to 4, but the built-in card 'x' has 4 classes"):
        count_labels(split_of([0, 4]), "f", 4, "the built-in card 'x'")


def test_unseen_labels():
    """A dev or test label that no model could predict is refused; a missing class is fine."""
    check_known_labels(split_of([1]), "test.csv", 2)
    with pytest.raises(DataError, match="test.csv: column 'label' has 2 in row 2"):
        check_known_labels(split_of([1, 2]), "test.csv", 2)


def test_empty_splits_and_texts():
    """No rows and blank texts are refused; the first rows are named."""
    with pytest.raises(DataError, match="f: no rows"):
        check_split(split_of([]), "f")
    with pytest.raises(DataError, match="column 'text' has no text in rows 1, 3: "):
        check_split(split_of([0, 1, 0], ["", "x", " \n\t"]), "f")
    with pytest.raises(DataError, match=r"1, 2, 3, 4, 5, \.\.\. \(9 rows\)"):
        check_split(split_of([0] * 9, ["　"] * 9), "f")
    with pytest.raises(DataError, match="column 'text_pair' has no text in row 2"):
        check_split(split_of([0, 1], ["a", "b"], ["c", " "]), "f")
