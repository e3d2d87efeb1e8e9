"""The synthetic twins."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from harness.core.errors import UnknownNameError
from harness.data.cards import CARDS
from harness.data.embedded import load_embedded, pretraining_texts, vocabulary
from harness.data.embedded.lexicon import LEXICON, SPECIALS
from harness.data.splits import check_known_labels, check_split, count_labels

FEW = (600, 100, 200)


@pytest.fixture(scope="module")
def twins():
    """Small twins of all cards."""
    return {name: load_embedded(name, sizes=FEW) for name in CARDS}


def words(text, language):
    return text.split() if language == "en" else list(text)


def test_twelve_twins_follow_their_cards(twins):
    """Every card has a twin in its language, with as many classes, single or paired as the card says."""
    assert list(twins) == list(CARDS)
    for name, twin in twins.items():
        it = CARDS[name]
        assert (twin.language, twin.num_labels, twin.source) == (it.language, it.num_labels, "embedded")
        assert len(set(twin.label_names)) == it.num_labels
        assert (twin.train.pairs is not None) == it.pair
        assert any("synthetic" in note for note in twin.notes)


def test_twins_satisfy_the_rules_of_data(twins):
    """The twins satisfy the rules for users' data."""
    for name, twin in twins.items():
        assert count_labels(twin.train, name) == twin.num_labels
        for split, size in zip((twin.train, twin.dev, twin.test), FEW, strict=True):
            assert len(split) == len(split.labels) == len(split.difficulty) == size
            check_split(split, name)
            check_known_labels(split, name, twin.num_labels)


def test_labels_and_difficulties_are_balanced(twins):
    """Labels are equally frequent at every difficulty; difficulties have shares 4 : 3 : 3."""
    for twin in twins.values():
        counts = np.bincount(twin.train.labels, minlength=twin.num_labels)
        assert counts.max() - counts.min() <= 1
        degrees = np.bincount(twin.train.difficulty) / len(twin.train)
        assert np.abs(degrees - [0.4, 0.3, 0.3]).max() < 0.03
        for degree in range(3):
            inside = np.bincount(twin.train.labels[twin.train.difficulty == degree], minlength=twin.num_labels)
            assert inside.max() - inside.min() <= max(10, 0.1 * inside.mean())


def test_seed_decides_everything():
    """The same seed gives the same samples, another seed gives others."""
    one, again, other = (load_embedded("lcqmc", seed, (50, 10, 10)) for seed in (0, 0, 1))
    assert one.train.texts == again.train.texts
    assert one.test.pairs == again.test.pairs
    assert (one.train.labels == again.train.labels).all()
    assert one.train.texts != other.train.texts
    assert pretraining_texts(20, 3) == pretraining_texts(20, 3) != pretraining_texts(20, 4)


def test_no_text_is_in_two_splits(twins):
    """No sample occurs twice, within a split or across them."""
    for twin in twins.values():
        samples = [
            sample
            for split in (twin.train, twin.dev, twin.test)
            for sample in zip(split.texts, split.pairs or [None] * len(split), strict=True)
        ]
        assert len(samples) == len(set(samples))


def test_twins_of_one_kind_differ(twins):
    """Datasets of the same form are not copies of each other."""
    assert not set(twins["chnsenticorp"].train.texts[:50]) & set(twins["weibo"].train.texts[:50])


def test_vocabularies_are_aligned():
    """Both vocabularies have the same size, unique entries, and the same id for each concept."""
    en, zh = vocabulary("en"), vocabulary("zh")
    assert len(en) == len(set(en)) == len(zh) == len(set(zh))
    assert en[:5] == zh[:5] == list(SPECIALS)
    first, last = len(SPECIALS), len(SPECIALS) + len(LEXICON["en"])
    assert en[first:last] == list(LEXICON["en"])
    assert zh[first:last] == list(LEXICON["zh"])
    assert all(len(word) == 1 for word in LEXICON["zh"])
    assert all(word.islower() or not word.isalpha() for word in LEXICON["en"])


def test_every_word_is_in_the_vocabulary(twins):
    """No word of a generated text is unknown to the vocabulary."""
    for twin in twins.values():
        known = set(vocabulary(twin.language))
        for text in [*twin.train.texts, *(twin.train.pairs or [])]:
            assert set(words(text, twin.language)) <= known
    for language in ("en", "zh"):
        for text in pretraining_texts(200, language=language):
            assert set(words(text.replace("|", ""), language)) <= set(vocabulary(language))


def test_samples_are_short_and_differ_in_length(twins):
    """Samples are short enough for quick runs and differ in length."""
    for twin in twins.values():
        pairs = twin.train.pairs or [""] * len(twin.train)
        lengths = [
            len(words(a, twin.language)) + len(words(b, twin.language))
            for a, b in zip(twin.train.texts, pairs, strict=True)
        ]
        assert max(lengths) <= 32
        assert min(lengths) >= 4
        assert np.std(lengths) > 2


@pytest.mark.parametrize("name", ["chnsenticorp", "yelp_polarity", "ag_news", "lcqmc"])
def test_counting_words_solves_easy_samples_only(name):
    """A bag of words is nearly always right on easy samples and close to guessing on hard ones."""
    twin = load_embedded(name, sizes=(3000, 100, 1500))
    test = twin.test
    joined = [
        [f"{a} {b}" for a, b in zip(split.texts, split.pairs or [""] * len(split), strict=True)]
        for split in (twin.train, test)
    ]
    pattern = r"\S+" if twin.language == "en" else r"\S"
    counts = CountVectorizer(token_pattern=pattern)
    model = LogisticRegression(max_iter=200, C=0.3).fit(counts.fit_transform(joined[0]), twin.train.labels)
    right = model.predict(counts.transform(joined[1])) == test.labels
    # The rival value is in every hard text too, so knowing both leaves two equally likely labels.
    assert right[test.difficulty == 0].mean() > 0.95
    assert right[test.difficulty == 2].mean() < 0.58


def test_an_unknown_dataset_is_refused():
    """An unknown dataset is refused."""
    with pytest.raises(UnknownNameError):
        load_embedded("agnews")
