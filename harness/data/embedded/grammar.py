"""The grammar of the made-up language: texts, and the answer that follows from each.

A text is a list of concepts. Its *value* is a star level 0..4 or a topic 0..13. Difficulty is the number of tokens
that must be combined to find the answer:

* easy (0): one word states the value, among fillers.
* middle (1): a negation or a contrast decides. ``not A, B`` means B; ``A but B`` means B; ``not`` before a filler
  has no meaning. Both values occur equally often, so that counting words does not help.
* hard (2): two people have opposite values. The chosen person is one of them, or refers to one by ``as`` through up to
  three references, with clauses in any order: ``anna is good. dan as cleo. ben is bad. choose dan. cleo as ben.``

A pair of texts is the same or different, as decided by a cue word (easy), by two equal or different words (middle), or by
which person has which topic (hard).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.data.embedded.lexicon import (
    AS,
    BUT,
    CHOOSE,
    COMMA,
    FILLERS,
    IS,
    NAMES,
    NOT,
    PAIR_CUES,
    PAIR_VERDICTS,
    STAR_VERDICTS,
    STARS,
    STOP,
    TOPIC_VERDICTS,
    TOPICS,
)

EASY, MIDDLE, HARD = 0, 1, 2


@dataclass
class Utterance:
    """A text or a pair of texts, with its meaning.

    Attributes:
        text: concepts of the first text.
        pair: concepts of the second text, or ``None``.
        verdict: the concept that states its value, e.g. ``liked``, ``sports`` or ``same``.
        facts: ``(name, verdict concept)`` of every person in the text.
    """

    text: list[int]
    pair: list[int] | None
    verdict: int
    facts: list[tuple[int, int]] = field(default_factory=list)


class Domain:
    """The values of stars, where a negation mirrors the level, or of topics, where it only excludes one.

    Args:
        words: words of each value.
        verdicts: the concept that states each value.
        mirrored: ``not`` before a value means the opposite value.
    """

    def __init__(self, words: Sequence[Sequence[int]], verdicts: Sequence[int], mirrored: bool) -> None:
        self.words, self.verdicts, self.mirrored = words, verdicts, mirrored

    def word(self, value: int, rng: random.Random) -> int:
        return rng.choice(self.words[value])

    def rival(self, value: int, allowed: Sequence[int], rng: random.Random) -> int:
        """Return a value that contradicts ``value``."""
        if self.mirrored and value != 2:
            return 4 - value
        return rng.choice([other for other in allowed if other != value])


STAR_DOMAIN = Domain(STARS, STAR_VERDICTS, mirrored=True)
TOPIC_DOMAIN = Domain(TOPICS, TOPIC_VERDICTS, mirrored=False)


def _fill(rng: random.Random, low: int, high: int) -> list[int]:
    return rng.choices(FILLERS, k=rng.randint(low, high))


def _easy(domain: Domain, value: int, allowed: Sequence[int], rng: random.Random) -> list[int]:
    text = [*_fill(rng, 3, 9), domain.word(value, rng), *_fill(rng, 2, 8), STOP]
    if rng.random() < 0.25:
        # References between people without a value: the words of hard texts alone must not mark a text as hard.
        one, other = rng.sample(NAMES, 2)
        aside = rng.choice(([one, AS, other, STOP], [CHOOSE, one, STOP]))
        text = aside + text if rng.random() < 0.5 else text + aside
    return text


def _middle(domain: Domain, value: int, allowed: Sequence[int], rng: random.Random) -> list[int]:
    rival = domain.rival(value, allowed, rng)
    right, wrong = domain.word(value, rng), domain.word(rival, rng)
    kind = rng.random()
    if kind < 0.5:
        return [
            *_fill(rng, 2, 5),
            wrong,
            *_fill(rng, 1, 4),
            COMMA,
            BUT,
            *_fill(rng, 1, 4),
            right,
            *_fill(rng, 0, 4),
            STOP,
        ]
    if domain.mirrored and value != 2:
        if kind < 0.75:
            core = [*_fill(rng, 2, 8), NOT, wrong, *_fill(rng, 2, 8)]
        else:
            core = [*_fill(rng, 1, 4), right, *_fill(rng, 1, 4), NOT, *_fill(rng, 1, 5)]
            if rng.random() < 0.5:
                core = [*_fill(rng, 1, 4), NOT, *_fill(rng, 1, 4), right, *_fill(rng, 1, 5)]
        return [*core, STOP]
    halves = [[*_fill(rng, 1, 4), NOT, wrong, *_fill(rng, 0, 2)], [*_fill(rng, 1, 4), right, *_fill(rng, 0, 2)]]
    rng.shuffle(halves)
    return [*halves[0], COMMA, *halves[1], STOP]


def _people(
    domain: Domain, value: int, allowed: Sequence[int], references: int, rng: random.Random
) -> tuple[list[list[int]], int, list[tuple[int, int]]]:
    """Return clauses in logical order, the person with ``value``, and the verdict on every person."""
    names = rng.sample(NAMES, 2 + references)
    rival = domain.rival(value, allowed, rng)
    clauses = [[names[0], IS, domain.word(value, rng), STOP], [names[1], IS, domain.word(rival, rng), STOP]]
    facts = [(names[0], domain.verdicts[value]), (names[1], domain.verdicts[rival])]
    person = names[0]
    for name in names[2:]:
        clauses.append([name, AS, person, STOP])
        facts.append((name, domain.verdicts[value]))
        person = name
    return clauses, person, facts


REFERENCES = (0, 1, 2, 3)  # drawn from with equal chances


def _hard(
    domain: Domain, value: int, allowed: Sequence[int], rng: random.Random
) -> tuple[list[int], list[tuple[int, int]]]:
    clauses, person, facts = _people(domain, value, allowed, rng.choice(REFERENCES), rng)
    clauses.append([CHOOSE, person, STOP])
    rng.shuffle(clauses)
    return [concept for clause in clauses for concept in clause], facts


def speak(domain: Domain, value: int, allowed: Sequence[int], difficulty: int, rng: random.Random) -> Utterance:
    """Generate a text with a given value.

    Args:
        domain: stars or topics.
        value: one of ``allowed``.
        allowed: values that may occur in the text.
        difficulty: 0 easy, 1 middle, 2 hard.
        rng: generator of all choices.
    """
    facts: list[tuple[int, int]] = []
    if difficulty == EASY:
        text = _easy(domain, value, allowed, rng)
    elif difficulty == MIDDLE:
        text = _middle(domain, value, allowed, rng)
    else:
        text, facts = _hard(domain, value, allowed, rng)
    return Utterance(text, None, domain.verdicts[value], facts)


def compare(same: int, difficulty: int, rng: random.Random) -> Utterance:
    """Generate a pair of texts with the same meaning (``same`` = 1) or different ones (0)."""
    domain, values = TOPIC_DOMAIN, range(len(TOPICS))
    facts: list[tuple[int, int]] = []
    one, other = rng.sample(values, 2)
    if difficulty == EASY:
        text = [*_fill(rng, 4, 10), STOP]
        pair = [*_fill(rng, 1, 6), rng.choice(PAIR_CUES[same]), *_fill(rng, 1, 6), STOP]
    elif difficulty == MIDDLE:
        words = [domain.word(value, rng) for value in rng.sample(values, 4)]
        echoed = words[:2] if same else words[2:]
        text = [*_fill(rng, 1, 3), words[0], *_fill(rng, 0, 3), words[1], *_fill(rng, 1, 3), STOP]
        pair = [*_fill(rng, 1, 3), echoed[0], *_fill(rng, 0, 3), echoed[1], *_fill(rng, 1, 3), STOP]
    else:
        clauses, person, facts = _people(domain, one, values, rng.choice(REFERENCES), rng)
        # A false claim names the other person's word, or a word of neither: the first needs the references, the second less.
        claimed = clauses[0 if same else 1][2]
        if not same and rng.random() < 0.3:
            claimed = domain.word(rng.choice([v for v in values if v != one]), rng)
        rng.shuffle(clauses)
        text = [concept for clause in clauses for concept in clause]
        pair = [person, IS, claimed, STOP]
    return Utterance(text, pair, PAIR_VERDICTS[same], facts)


def recite(rng: random.Random, *, most_roots: int = 3, most_references: int = 2, choosing: bool = True) -> Utterance:
    """Generate clauses about people, one of them chosen, with the verdict on each: practice in following references.

    Args:
        rng: generator of all choices.
        most_roots: most people with a value of their own (at least two).
        most_references: most people who refer to another one by ``as``.
        choosing: add the clause that chooses a person. The verdict is about that person in any case.
    """
    domain = rng.choice((STAR_DOMAIN, TOPIC_DOMAIN))
    roots, references = rng.randint(2, most_roots), rng.randint(0, most_references)
    names = rng.sample(NAMES, roots + references)
    known: dict[int, int] = {}
    clauses = []
    for place, name in enumerate(names):
        if place < roots:
            known[name] = rng.randrange(len(domain.words))
            clauses.append([name, IS, domain.word(known[name], rng), STOP])
        else:
            other = rng.choice(names[:place])
            known[name] = known[other]
            clauses.append([name, AS, other, STOP])
    chosen = names[-1] if rng.random() < 0.6 else rng.choice(names)
    if choosing:
        clauses.append([CHOOSE, chosen, STOP])
    rng.shuffle(clauses)
    text = [concept for clause in clauses for concept in clause]
    facts = [(name, domain.verdicts[value]) for name, value in known.items()]
    return Utterance(text, None, domain.verdicts[known[chosen]], facts)
