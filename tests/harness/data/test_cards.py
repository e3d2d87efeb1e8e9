"""Dataset cards and the file that they are read from."""

import re

import pytest
from pydantic import ValidationError

from harness.core.errors import DataError, UnknownNameError
from harness.data.cards import CARDS, DatasetCard, card, read_cards

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
    """Label names and splits fit together; a card without a hub copy says why, and a pinned revision is a commit."""
    it = card(name)
    assert it.name == name
    assert len(it.label_names) == len(set(it.label_names)) == it.num_labels
    assert "train" in it.hub_splits
    assert it.hub_id or it.notes
    assert it.hub_revision is None or re.fullmatch(r"[0-9a-f]{40}", it.hub_revision)


def test_unknown_name_suggests_the_nearest():
    """The error for a misspelt dataset name suggests the right one."""
    with pytest.raises(UnknownNameError, match="unknown dataset 'agnews'.*did you mean ag_news"):
        card("agnews")


def test_cards_are_strict_and_frozen():
    """A card accepts no unknown fields and cannot be changed."""
    it = card("ag_news")
    with pytest.raises(ValidationError):
        DatasetCard.model_validate({**it.model_dump(), "colour": "red"})
    with pytest.raises(ValidationError):
        it.num_labels = 5


TWELVE_LINES = """[trees]
title = "Kinds of trees"
language = "en"
task = "Which tree is described?"
label_names = ["oak", "elm", "ash"]
columns = { text = ["heading", "body"], label = "tree" }
label_offset = 1
hub_id = "forest/trees"
expected_sizes = { train = 1_000, test = 100 }
licence = "CC0"
citation = "A. Uthor: Trees. 2020"
notes = ["made up"]
"""


def test_a_new_card_takes_twelve_lines(tmp_path):
    """A card of twelve lines loads, with defaults for all that it does not state."""
    assert len(TWELVE_LINES.splitlines()) == 12
    (path := tmp_path / "cards.toml").write_text(TWELVE_LINES, encoding="utf-8")
    it = read_cards(path)["trees"]
    assert (it.name, it.num_labels, it.pair, it.columns.text) == ("trees", 3, False, ("heading", "body"))
    assert it.hub_splits == {"train": "train", "test": "test"}


def test_wrong_cards_are_all_named(tmp_path):
    """Every problem of a file of cards is reported at once, with file, card, key and allowed values."""
    text = TWELVE_LINES.replace('"en"', '"fr"').replace("licence", "license").replace("offset = 1", 'offset = "1"')
    (path := tmp_path / "cards.toml").write_text(text + '[shrubs]\ntitle = "Shrubs"\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_cards(path)
    message = str(caught.value)
    assert "\n" not in message
    for problem in (
        f'{path}, [trees]: language = "fr" is not allowed: give one of "en", "zh"',
        f"{path}, [trees]: unknown key 'license': did you mean licence?",
        f"{path}, [trees]: key 'licence' is missing: give text in quotes",
        f'{path}, [trees]: label_offset = "1" is not allowed: give an integer',
        f"{path}, [shrubs]: key 'label_names' is missing: give a non-empty list",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[trees\n", "not valid TOML"), ('title = "Trees"\n', "key 'title' is outside a card: write it below a line")],
)
def test_a_file_without_cards_is_refused(tmp_path, text, problem):
    """Broken TOML and keys outside a table are reported with the file."""
    (path := tmp_path / "cards.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"cards\.toml: {problem}"):
        read_cards(path)
