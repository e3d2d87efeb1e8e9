"""The twelve datasets of the FastBERT paper (arXiv 2004.02178, Table 1) as strict records.

English sets: Zhang, Zhao, LeCun 2015. Chinese sets as FastBERT and K-BERT use them. What is uncertain stands in
``notes``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.core.errors import UnknownNameError

_ZHANG = (
    "Zhang, Zhao, LeCun: Character-level Convolutional Networks for Text Classification. NIPS 2015. arXiv 1509.01626"
)
_KBERT = "Liu et al.: K-BERT: Enabling Language Representation with Knowledge Graph. AAAI 2020. arXiv 1909.07606"
_LCQMC = "Liu et al.: LCQMC: A Large-scale Chinese Question Matching Corpus. COLING 2018"
_THU = "Sun et al.: THUCTC: An Efficient Chinese Text Classifier. 2016"
_CARVED = "train and test of the hub; dev is 10 % of train, stratified, seed 0"
_UNPINNED = "hub revision not pinned: no commit of this repository has been verified"
_UNCLEAR = "none stated by its collectors: treat as research only"


class Columns(BaseModel):
    """Where a hub copy keeps what: ``text`` columns are joined with a space, empty ones left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: tuple[str, ...] = ("text",)
    text_pair: str | None = None
    label: str = "label"


class DatasetCard(BaseModel):
    """One dataset: what it asks, where it is, how it is split, and what is not certain about that.

    Attributes:
        name: as on the command line.
        label_names: in label order, 0 first.
        pair: samples are pairs of texts.
        label_offset: subtracted from the hub's labels, which may count from 1.
        hub_id: repository of a copy without loading script; ``None`` where no faithful one is known.
        hub_revision: pinned commit; ``None`` where none has been verified.
        hub_splits: our split name -> the hub's. A missing ``dev`` is carved from train.
        expected_sizes: rows of train, dev and test as published; ``None`` where that is not certain.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    language: Literal["en", "zh"]
    task: str
    num_labels: int = Field(ge=2)
    label_names: tuple[str, ...]
    pair: bool = False
    columns: Columns = Columns()
    label_offset: int = 0
    hub_id: str | None
    hub_revision: str | None = None
    hub_config: str | None = None
    hub_splits: dict[str, str] = Field(default_factory=lambda: {"train": "train", "test": "test"})
    split_rule: str
    expected_sizes: dict[Literal["train", "dev", "test"], int | None]
    licence: str
    citation: str
    metric: Literal["accuracy"] = "accuracy"
    notes: tuple[str, ...] = ()


def _sizes(train: int | None, dev: int | None, test: int | None) -> dict[Literal["train", "dev", "test"], int | None]:
    return {"train": train, "dev": dev, "test": test}


_POLARITY = ("negative", "positive")
_SENTIMENT = "Is the review negative or positive?"
_STARS = tuple(f"{n} star{'s' * (n > 1)}" for n in range(1, 6))

_ALL = (
    DatasetCard(
        name="chnsenticorp",
        title="ChnSentiCorp",
        language="zh",
        task=_SENTIMENT,
        num_labels=2,
        label_names=_POLARITY,
        hub_id="lansinuote/ChnSentiCorp",
        hub_splits={"train": "train", "dev": "validation", "test": "test"},
        split_rule="the three splits of the hub",
        expected_sizes=_sizes(9_600, 1_200, 1_200),
        licence=_UNCLEAR,
        citation="Tan, Zhang: An empirical study of sentiment analysis for Chinese documents. Expert Systems 2008",
        notes=(_UNPINNED, "seamew/ChnSentiCorp needs a loading script, which datasets >= 4 refuses"),
    ),
    DatasetCard(
        name="book_review",
        title="Book review (Douban)",
        language="zh",
        task=_SENTIMENT,
        num_labels=2,
        label_names=_POLARITY,
        hub_id=None,
        split_rule="the three files of the FastBERT repository (datasets/douban_book_review)",
        expected_sizes=_sizes(20_000, 10_000, 10_000),
        licence=_UNCLEAR,
        citation=_KBERT,
        notes=("no faithful copy on the hub is known: larrylawl/douban-dushu is another corpus",),
    ),
    DatasetCard(
        name="shopping_review",
        title="Shopping review",
        language="zh",
        task=_SENTIMENT,
        num_labels=2,
        label_names=("positive", "negative"),
        hub_id=None,
        split_rule="the three files of the K-BERT repository (datasets/shopping)",
        expected_sizes=_sizes(20_000, 10_000, 10_000),
        licence=_UNCLEAR,
        citation=_KBERT,
        notes=(
            "label 0 is positive, as in the source files",
            "online_shopping_10_cats on the hub is a superset without splits (62,774 rows), so not this dataset",
        ),
    ),
    DatasetCard(
        name="lcqmc",
        title="LCQMC",
        language="zh",
        task="Do the two questions ask the same?",
        num_labels=2,
        label_names=("different", "same"),
        pair=True,
        columns=Columns(text=("sentence1",), text_pair="sentence2", label="score"),
        hub_id="C-MTEB/LCQMC",
        hub_splits={"train": "train", "dev": "validation", "test": "test"},
        split_rule="the three splits of the hub",
        expected_sizes=_sizes(None, None, None),
        licence="research use on request to its authors (Harbin Institute of Technology, Shenzhen)",
        citation=_LCQMC,
        notes=(_UNPINNED, "row counts of the hub copy have not been checked against the original"),
    ),
    DatasetCard(
        name="weibo",
        title="Weibo",
        language="zh",
        task="Is the post negative or positive?",
        num_labels=2,
        label_names=_POLARITY,
        columns=Columns(text=("review",)),
        hub_id="dirtycomputer/weibo_senti_100k",
        hub_splits={"train": "train"},
        split_rule="the hub has one split of about 120,000 rows: 10 % test, then 10 % of the rest dev, seed 0",
        expected_sizes=_sizes(None, None, None),
        licence=_UNCLEAR,
        citation=_KBERT,
        notes=(
            _UNPINNED,
            "the split of the paper is not published, so test rows differ from it",
            "emoticon tags in the texts give many labels away",
        ),
    ),
    DatasetCard(
        name="thucnews",
        title="THUCNews",
        language="zh",
        task="What is the news about?",
        num_labels=10,
        label_names=(
            "finance",
            "realty",
            "stocks",
            "education",
            "science",
            "society",
            "politics",
            "sports",
            "game",
            "entertainment",
        ),
        hub_id=None,
        split_rule="the ten-class subset of titles, as local files",
        expected_sizes=_sizes(None, None, None),
        licence="THUCNews: free for research, commercial use by agreement with Tsinghua University",
        citation=_THU,
        notes=(
            "the subset that the paper used is not published; label names follow the common ten-class title subset",
            "hub copies are a training part only, the 14-class corpus, or loading scripts",
        ),
    ),
    DatasetCard(
        name="ag_news",
        title="AG's news",
        language="en",
        task="What is the news about?",
        num_labels=4,
        label_names=("World", "Sports", "Business", "Sci/Tech"),
        hub_id="fancyzhx/ag_news",
        split_rule=_CARVED,
        expected_sizes=_sizes(120_000, None, 7_600),
        licence="AG's corpus: research and other non-commercial use",
        citation=_ZHANG,
        notes=(_UNPINNED,),
    ),
    DatasetCard(
        name="amazon_full",
        title="Amazon reviews, full",
        language="en",
        task="How many stars does the review give?",
        num_labels=5,
        label_names=_STARS,
        columns=Columns(text=("review_title", "review_text"), label="class_index"),
        label_offset=1,
        hub_id="yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes",
        split_rule=_CARVED,
        expected_sizes=_sizes(3_000_000, None, 650_000),
        licence=_UNCLEAR,
        citation=_ZHANG,
        notes=(
            _UNPINNED,
            "column names and the 1-based labels of the hub copy are not certain: its CSV may have no header row",
            "amazon_polarity (2 classes) and amazon_reviews_multi are other datasets",
        ),
    ),
    DatasetCard(
        name="dbpedia",
        title="DBpedia",
        language="en",
        task="What kind of thing is described?",
        num_labels=14,
        label_names=(
            "Company",
            "Educational Institution",
            "Artist",
            "Athlete",
            "Office Holder",
            "Mean of Transportation",
            "Building",
            "Natural Place",
            "Village",
            "Animal",
            "Plant",
            "Album",
            "Film",
            "Written Work",
        ),
        columns=Columns(text=("title", "content")),
        hub_id="fancyzhx/dbpedia_14",
        split_rule=_CARVED,
        expected_sizes=_sizes(560_000, None, 70_000),
        licence="CC BY-SA 3.0 and GFDL",
        citation=_ZHANG,
        notes=(_UNPINNED,),
    ),
    DatasetCard(
        name="yahoo",
        title="Yahoo! Answers topics",
        language="en",
        task="What is the question about?",
        num_labels=10,
        label_names=(
            "Society & Culture",
            "Science & Mathematics",
            "Health",
            "Education & Reference",
            "Computers & Internet",
            "Sports",
            "Business & Finance",
            "Entertainment & Music",
            "Family & Relationships",
            "Politics & Government",
        ),
        columns=Columns(text=("question_title", "question_content", "best_answer"), label="topic"),
        hub_id="community-datasets/yahoo_answers_topics",
        split_rule=_CARVED,
        expected_sizes=_sizes(1_400_000, None, 60_000),
        licence="Yahoo! Answers corpus: research use",
        citation=_ZHANG,
        notes=(_UNPINNED, "which of the three text columns the paper used is not stated; all are joined here"),
    ),
    DatasetCard(
        name="yelp_full",
        title="Yelp reviews, full",
        language="en",
        task="How many stars does the review give?",
        num_labels=5,
        label_names=_STARS,
        hub_id="Yelp/yelp_review_full",
        split_rule=_CARVED,
        expected_sizes=_sizes(650_000, None, 50_000),
        licence="Yelp dataset licence: academic use",
        citation=_ZHANG,
        notes=(_UNPINNED,),
    ),
    DatasetCard(
        name="yelp_polarity",
        title="Yelp reviews, polarity",
        language="en",
        task=_SENTIMENT,
        num_labels=2,
        label_names=_POLARITY,
        hub_id="fancyzhx/yelp_polarity",
        hub_config="plain_text",
        split_rule=_CARVED,
        expected_sizes=_sizes(560_000, None, 38_000),
        licence="Yelp dataset licence: academic use",
        citation=_ZHANG,
        notes=(_UNPINNED,),
    ),
)

CARDS: dict[str, DatasetCard] = {card.name: card for card in _ALL}


def card(name: str) -> DatasetCard:
    """The card called ``name``.

    Raises:
        UnknownNameError: there is none; the message suggests the nearest.
    """
    if name not in CARDS:
        raise UnknownNameError("dataset", name, CARDS)
    return CARDS[name]
