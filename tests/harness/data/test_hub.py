"""Datasets from the hub, with a fake library in its place."""

import sys
import types

import numpy as np
import pytest

from harness.core.errors import DataError
from harness.data.cards import card
from harness.data.hub import load_hub


class FakeTable(dict):
    """The used part of what load_dataset returns."""

    @property
    def column_names(self):
        return list(self)


class FakeHub:
    """Serve tables by split and record the calls."""

    def __init__(self, tables):
        self.tables, self.calls = tables, []

    def load_dataset(self, *args, **options):
        self.calls.append((args, options))
        if isinstance(self.tables, Exception):
            raise self.tables
        return self.tables[options["split"]]


@pytest.fixture
def serve(monkeypatch):
    """Put a fake ``datasets`` in place that serves these tables."""

    def put(tables):
        hub = FakeHub(tables)
        module = types.ModuleType("datasets")
        module.load_dataset = hub.load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)
        return hub

    return put


def news(n):
    return FakeTable(text=[f"news {i}" for i in range(n)], label=[i % 4 for i in range(n)])


def test_dev_is_carved(serve):
    """An English set gets its dev from train, and no code of the repository is trusted."""
    hub = serve({"train": news(200), "test": news(20)})
    data = load_hub(card("ag_news"))
    assert [len(data.train), len(data.dev), len(data.test)] == [180, 20, 20]
    assert np.bincount(data.dev.labels).tolist() == [5, 5, 5, 5]
    assert (data.source, data.language, data.num_labels) == ("hub", "en", 4)
    assert any("dev is 10 % of train" in note for note in data.notes)
    assert all("trust_remote_code" not in options for _, options in hub.calls)
    assert hub.calls[0][0][0] == "fancyzhx/ag_news"


def test_columns_offset_and_pairs(serve):
    """Text columns are joined, labels shifted to 0, pairs kept."""
    reviews = FakeTable(
        class_index=[1, 5, 3, 3], review_title=["Fine", "", "So", None], review_text=["a", "b", "c", "d"]
    )
    serve({"train": reviews, "test": reviews})
    data = load_hub(card("amazon_full"))
    assert data.test.texts == ["Fine a", "b", "So c", "d"]
    assert data.test.labels.tolist() == [0, 4, 2, 2]
    questions = FakeTable(sentence1=["a", "b"], sentence2=["c", "d"], score=[0, 1])
    serve({"train": questions, "validation": questions, "test": questions})
    data = load_hub(card("lcqmc"))
    assert data.dev.pairs == ["c", "d"]


def test_single_split_gives_test_and_dev(serve):
    """If the hub has one split, test and dev are carved from it without overlap."""
    serve({"train": FakeTable(review=[f"r{i}" for i in range(200)], label=[i % 2 for i in range(200)])})
    data = load_hub(card("weibo"))
    assert [len(data.train), len(data.dev), len(data.test)] == [162, 18, 20]
    assert len({*data.train.texts, *data.dev.texts, *data.test.texts}) == 200


@pytest.mark.parametrize("name", ["book_review", "shopping_review", "thucnews"])
def test_no_faithful_copy(name):
    """The error for a dataset without a faithful copy points to local files."""
    with pytest.raises(DataError, match="no faithful copy on the hub.*--data DIR"):
        load_hub(card(name))


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), FileNotFoundError("404"), RuntimeError()])
def test_errors_of_the_hub_are_one_line(serve, error):
    """Every error of the library becomes one line with advice."""
    serve(error)
    with pytest.raises(DataError, match="cannot be loaded.*--data DIR") as caught:
        load_hub(card("ag_news"))
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch):
    """Without the package, the message says what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_hub(card("ag_news"))


def test_copy_that_differs_from_its_card(serve):
    """Missing columns and labels beyond the card's are refused."""
    serve({"train": FakeTable(body=["a"], label=[0]), "test": news(4)})
    with pytest.raises(DataError, match=r"split 'train': no column 'text' \(columns: body, label\)"):
        load_hub(card("ag_news"))
    serve({"train": FakeTable(text=["a", "b", "c", "d"], label=[1, 2, 3, 4]), "test": news(4)})
    with pytest.raises(DataError, match="has 4 classes"):
        load_hub(card("ag_news"))
