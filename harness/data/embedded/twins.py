"""Synthetic twins of the datasets, and texts to pretrain the miniature encoder on; all drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np

from harness.data.cards import DatasetCard, card
from harness.data.embedded.grammar import EASY, HARD, MIDDLE, STAR_DOMAIN, TOPIC_DOMAIN, Utterance, compare, speak
from harness.data.embedded.lexicon import SO, STOP, TOPIC_VERDICTS, render
from harness.data.splits import RawDataset, RawSplit

SIZES = (3000, 1000, 1000)  # train, dev, test
DEGREES = (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)  # easy : middle : hard as 4 : 3 : 3
PAIR_MARK = "|"  # between the two texts of a pretraining text

_STARS = {"amazon_full", "yelp_full"}
_POLAR_LEVELS = (0, 1, 3, 4)


def _speaker(card: DatasetCard) -> Callable[[int, int, random.Random], Utterance]:
    """Return a function (label, difficulty, generator) -> a sample of the twin of ``card``."""
    if card.pair:
        return compare
    if card.name in _STARS:
        return lambda label, difficulty, rng: speak(STAR_DOMAIN, label, range(5), difficulty, rng)
    if card.num_labels == 2:
        # In the order of the card's label names: shopping_review has positive first.
        sides = {"negative": (0, 1), "positive": (3, 4)}
        levels = [sides[name] for name in card.label_names]
        return lambda label, difficulty, rng: speak(
            STAR_DOMAIN, rng.choice(levels[label]), _POLAR_LEVELS, difficulty, rng
        )
    return lambda label, difficulty, rng: speak(TOPIC_DOMAIN, label, range(card.num_labels), difficulty, rng)


def _label_names(card: DatasetCard) -> list[str]:
    if card.name in _STARS or card.num_labels == 2:
        return list(card.label_names)
    return [render([concept], "en") for concept in TOPIC_VERDICTS[: card.num_labels]]


def _draw(card: DatasetCard, count: int, rng: random.Random, seen: set[tuple[str, str | None]]) -> RawSplit:
    """Draw ``count`` samples that are not in ``seen``, with fixed shares of labels and difficulties, shuffled."""
    speaker = _speaker(card)
    # Labels take turns; every block of C x 10 samples has each label with 4 : 3 : 3 easy, middle and hard samples.
    plan = [(place % card.num_labels, DEGREES[place // card.num_labels % len(DEGREES)]) for place in range(count)]
    rng.shuffle(plan)
    texts: list[str] = []
    pairs: list[str] = []
    for label, degree in plan:
        while True:
            sample = speaker(label, degree, rng)
            text = render(sample.text, card.language)
            pair = None if sample.pair is None else render(sample.pair, card.language)
            if (text, pair) not in seen:
                break
        seen.add((text, pair))
        texts.append(text)
        if pair is not None:
            pairs.append(pair)
    return RawSplit(
        texts,
        pairs if card.pair else None,
        np.array([label for label, _ in plan], dtype=np.int64),
        np.array([degree for _, degree in plan], dtype=np.int8),
    )


def load_embedded(name: str, seed: int = 0, sizes: tuple[int, int, int] | None = None) -> RawDataset:
    """Generate the synthetic twin of a dataset: its language, classes and form, with texts of :mod:`.grammar`.

    Args:
        name: of a card.
        sizes: rows of train, dev and test; default 3,000, 1,000 and 1,000.

    Raises:
        UnknownNameError: there is no such card.
    """
    twin = card(name)
    rng = random.Random(f"embedded twin {name} {seed}")
    seen: set[tuple[str, str | None]] = set()
    train, dev, test = (_draw(twin, count, rng, seen) for count in sizes or SIZES)
    return RawDataset(
        name=name,
        language=twin.language,
        num_labels=twin.num_labels,
        label_names=_label_names(twin),
        source="embedded",
        train=train,
        dev=dev,
        test=test,
        notes=["synthetic data: a made-up language with graded difficulty, not the real dataset"],
    )


def utterances(seed: int | str, pair_share: float = 0.4) -> Iterator[Utterance]:
    """Yield an endless stream for pretraining: stars, topics and pairs of every difficulty, mostly hard ones.

    Its generator differs from those of the twins. A text may occur in both by chance, as in real corpora.
    """
    rng = random.Random(f"embedded pretraining {seed}")
    while True:
        family = rng.random()
        paired = family >= 1 - pair_share
        difficulty = rng.choices((EASY, MIDDLE, HARD), (1, 3, 2) if paired else (1, 1, 3))[0]
        if paired:
            yield compare(rng.randrange(2), difficulty, rng)
        elif family < 0.55 * (1 - pair_share):
            yield speak(STAR_DOMAIN, rng.randrange(5), range(5), difficulty, rng)
        else:
            yield speak(TOPIC_DOMAIN, rng.randrange(14), range(14), difficulty, rng)


def pretraining_texts(n: int, seed: int = 0, language: str = "en") -> list[str]:
    """Return ``n`` texts, each followed by its conclusion: ``anna is good . choose anna . so anna liked . so liked .``

    The closing words restate the meaning of the text, so that a model can predict them only by composition.
    """
    stream = utterances(seed)
    space = " " if language == "en" else ""
    texts = []
    for _ in range(n):
        said = next(stream)
        closing = [concept for name, verdict in said.facts for concept in (SO, name, verdict, STOP)]
        closing += [SO, said.verdict, STOP]
        parts = [render(said.text, language)]
        if said.pair is not None:
            parts += [PAIR_MARK, render(said.pair, language)]
        texts.append(space.join([*parts, render(closing, language)]))
    return texts
