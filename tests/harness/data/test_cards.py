"""The twelve dataset cards."""

import re

import pytest
from pydantic import ValidationError

from harness.core.errors import UnknownNameError
from harness.data.cards import CARDS, DatasetCard, card

NAMES = [
    "chnsenticorp",
    "book_review",
    "shopping_review",
    "lcqmc",
    "weibo",
    "thucnews",
    "ag_news",
    "amazon_full",
    "dbpedia",
    "yahoo",
    "yelp_full",
    "yelp_polarity",
]


def test_the_twelve_of_the_paper():
    """There is a card for each dataset of the FastBERT paper and for nothing else."""
    assert sorted(CARDS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_is_consistent(name):
    """Label names, splits and a pinned revision, where there is one, fit together."""
    it = card(name)
    assert it.name == name
    assert len(it.label_names) == len(set(it.label_names)) == it.num_labels
    assert it.pair == (it.columns.text_pair is not None)
    assert set(it.hub_splits) <= {"train", "dev", "test"}
    assert "train" in it.hub_splits
    assert set(it.expected_sizes) == {"train", "dev", "test"}
    if it.hub_revision is None:
        assert it.notes, "what is uncertain must be said"
    else:
        assert re.fullmatch(r"[0-9a-f]{40}", it.hub_revision)


def test_unknown_name_suggests_the_nearest():
    """A misspelt dataset name is answered with the right one."""
    with pytest.raises(UnknownNameError, match="unknown dataset 'agnews'.*did you mean ag_news"):
        card("agnews")


def test_cards_are_strict_and_frozen():
    """A card neither takes unknown fields nor lets itself be changed."""
    it = card("ag_news")
    with pytest.raises(ValidationError):
        DatasetCard.model_validate({**it.model_dump(), "colour": "red"})
    with pytest.raises(ValidationError):
        it.num_labels = 5
