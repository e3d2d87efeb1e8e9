"""Augmentation: changes in copies, and candidates for replacements."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import ConfigError
from harness.core.tokens import Split, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.masked_words import MaskedWordModel, masked_word_model
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.toolkit import augmentation
from harness.toolkit.augmentation import Augmentation, Pieces, augment, neighbours, predicted

SPECIALS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
SIGNS = [",", "7", "."]
WORDS = ["old", "river", "stone", "house", "green", "light", "winter", "summer", "garden", "山", "水"]
ENDS = ["##s", "##ing", "##7"]
VOCABULARY = [*SPECIALS, *SIGNS, *WORDS, *ENDS]
CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
SPECIAL_IDS = set(range(len(SPECIALS)))
WORD_IDS = {VOCABULARY.index(word) for word in WORDS}
END_IDS = {VOCABULARY.index(end) for end in ENDS}


def made(head: bool) -> Backbone:
    """Random weights, no dropout; special tokens have scattered ids, as in BERT's vocabulary."""
    from transformers import BertTokenizer

    torch.manual_seed(0)
    shape = EncoderShape(2, 8, 2, 12, len(VOCABULARY), 40, dropout=0.0)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    scorer = MaskedWordModel(encoder)
    torch.nn.init.normal_(scorer.bias)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    own = {name: t.clone() for name, t in scorer.state_dict().items() if not name.startswith("encoder.")}
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)})
    return Backbone("made", shape, state, tokenizer, head=own if head else None)


PLAIN, SCORING = made(False), made(True)

_word = st.tuples(st.sampled_from(sorted(WORD_IDS)), st.lists(st.sampled_from(sorted(END_IDS)), max_size=2)).map(
    lambda parts: [parts[0], *parts[1]]
)
_sign = st.sampled_from([VOCABULARY.index(sign) for sign in (*SIGNS, "[UNK]")]).map(lambda sign: [sign])
_text = st.lists(st.one_of(_word, _word, _sign), max_size=6).map(lambda words: [i for word in words for i in word])
_samples = st.lists(st.tuples(_text, st.none() | _text), min_size=1, max_size=6)


def packed(samples: list[tuple[list[int], list[int] | None]]) -> Split:
    ids, segments = [], []
    for first, second in samples:
        row = [CLS, *first, SEP]
        kinds = [0] * len(row)
        if second is not None:
            row += [*second, SEP]
            kinds += [1] * (len(second) + 1)
        ids.append(row)
        segments.append(kinds)
    return Split(TokenSet.from_lists(ids, segments, (0, CLS, SEP)), torch.arange(len(ids)))


def rows(tokens: TokenSet) -> list[list[tuple[int, int]]]:
    """Return ids and segments per sample."""
    ends = tokens.offsets.tolist()
    pairs = list(zip(tokens.ids.tolist(), tokens.segments.tolist(), strict=True))
    return [pairs[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


def words(row: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the words of a sample, found token by token; every other token is a word."""
    found: list[list[int]] = []
    for token, _ in row:
        if token in END_IDS and found and found[-1][0] not in SPECIAL_IDS:
            found[-1].append(token)
        else:
            found.append([token])
    return [tuple(word) for word in found]


@settings(max_examples=25)
@given(
    _samples,
    st.integers(1, 3),
    st.sampled_from([0.1, 0.4, 1.0]),
    st.integers(1, 20),
    st.integers(0, 5),
    st.sampled_from([PLAIN, SCORING]),
)
def test_copies_differ_in_words_only(
    samples: list, copies: int, share: float, candidates: int, seed: int, backbone: Backbone
) -> None:
    """Copies follow the originals; only words change, each into another word of one piece.

    Labels, special tokens, segments, signs and the order of words are kept, nothing grows, and the seed decides.
    """
    split = packed(samples)
    how = Augmentation(copies, share, candidates)
    larger, cost = augment(split, backbone, how, seed=seed, name="t")
    count = len(split)
    assert cost is not None and len(larger) == count * (copies + 1)
    assert larger.labels.tolist() == split.labels.tolist() * (copies + 1)
    originals, all_rows = rows(split.tokens), rows(larger.tokens)
    assert all_rows[:count] == originals
    assert larger.tokens.special == split.tokens.special
    assert (larger.tokens.ids.dtype, larger.tokens.segments.dtype) == (
        split.tokens.ids.dtype,
        split.tokens.segments.dtype,
    )
    for number, row in enumerate(all_rows[count:]):
        original = originals[number % count]
        assert len(row) <= len(original)
        assert [pair for pair in row if pair[0] in SPECIAL_IDS] == [p for p in original if p[0] in SPECIAL_IDS]
        before, after = words(original), words(row)
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            if old[0] not in SPECIAL_IDS and any(map(str.isalpha, "".join(VOCABULARY[i] for i in old))):
                assert new == old or (len(new) == 1 and new[0] in WORD_IDS)
                assert share < 1 or new != old
            else:
                assert new == old
    again, _ = augment(split, backbone, how, seed=seed, name="t")
    assert torch.equal(again.tokens.ids, larger.tokens.ids)
    assert torch.equal(again.tokens.offsets, larger.tokens.offsets)


def _long(count: int) -> Split:
    draw = np.random.default_rng(0)
    return packed([(draw.choice(sorted(WORD_IDS), 20).tolist(), None) for _ in range(count)])


def test_words_are_replaced_with_the_given_probability() -> None:
    """Of 20,000 words 40 +- 2 % change; copies differ from each other."""
    split = _long(200)
    larger, _ = augment(split, PLAIN, Augmentation(5, 0.4, 5), seed=3, name="t")
    ids = larger.tokens.ids.view(6, -1)
    inside = torch.isin(ids[0], torch.tensor(sorted(WORD_IDS)))
    changed = [(copy[inside] != ids[0][inside]).float().mean().item() for copy in ids[1:]]
    assert sum(changed) / 5 == pytest.approx(0.4, abs=0.02)
    assert len({tuple(copy.tolist()) for copy in ids}) == 6


def test_another_seed_gives_other_copies() -> None:
    """Copies depend on the seed only."""
    one, other = (augment(_long(4), PLAIN, Augmentation(1), seed=seed, name="t")[0].tokens.ids for seed in (0, 1))
    assert not torch.equal(one, other)


def test_candidates_are_the_nearest_words() -> None:
    """Neighbours are by cosine (of the mean of several pieces), without the word itself, punctuation, special tokens or endings."""
    table = PLAIN.state["word.weight"]
    candidates = Pieces.of(PLAIN.tokenizer).candidates
    assert set(candidates.tolist()) == WORD_IDS
    river, ending = VOCABULARY.index("river"), VOCABULARY.index("##s")
    asked = [(river,), (river, ending)]
    found = neighbours(table, asked, torch.from_numpy(candidates), 4)
    for word, row in zip(asked, found.tolist(), strict=True):
        query = np.mean([table[i].numpy() for i in word], axis=0)

        def cosine(other: int, query: np.ndarray = query) -> float:
            v = table[other].numpy()
            return float(query @ v) / math.sqrt(float(query @ query) * float(v @ v))

        best = sorted((i for i in WORD_IDS if word != (i,)), key=cosine, reverse=True)
        assert row == best[:4]


def test_words_of_one_piece_use_the_masked_word_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions equal those of one run per masked word, for any batch."""
    model = masked_word_model(SCORING)
    assert model is not None
    split = packed([([9, 10, 11], [12, 13]), ([14], None), ([10, 10, 11, 12, 16], None)])
    tokens = split.tokens
    places = np.flatnonzero(np.isin(tokens.ids.numpy(), sorted(WORD_IDS)))
    candidates = torch.tensor(sorted(WORD_IDS))
    mask = VOCABULARY.index("[MASK]")
    found = predicted(model.eval(), tokens, places, candidates, 5, mask=mask, name="t")
    for place, row in zip(places, found.tolist(), strict=True):
        sample = int(np.searchsorted(tokens.offsets.numpy(), place, side="right")) - 1
        one = tokens.select([sample])
        at = place - int(tokens.offsets[sample])
        own, ids = int(one.ids[at]), one.ids.clone()
        ids[at] = mask
        with torch.no_grad():
            layout = Layout(one.lengths.numpy(), None, "cpu")
            *_, hidden = model.encoder.states(replace(one, ids=ids), layout)
            scores = model.scores(hidden[at : at + 1])[0]
        best = sorted(WORD_IDS - {own}, key=lambda i: float(scores[i]), reverse=True)
        assert row == best[:5]
    monkeypatch.setattr(augmentation, "_TOKENS", 8)
    np.testing.assert_array_equal(predicted(model, tokens, places, candidates, 5, mask=mask, name="t"), found)


def test_the_cost_is_one_pass_per_replaced_word() -> None:
    """The cost is one pass through every layer per replaced word, and nothing if only neighbours are needed."""
    split = _long(3)
    larger, cost = augment(split, SCORING, Augmentation(1, 1.0, 3), seed=0, name="t")
    assert cost is not None and cost.layer_passes == 3 * 20 * 2 and cost.flops > 0 and cost.steps == 0
    _, cheap = augment(split, PLAIN, Augmentation(1, 1.0, 3), seed=0, name="t")
    assert cheap is not None and cheap.layer_passes == 0
    assert len(larger) == 6


def test_without_copies_the_split_is_unchanged() -> None:
    """By default the same split is returned, at no cost."""
    split = _long(2)
    assert augment(split, PLAIN, Augmentation(), seed=0, name="t") == (split, None)


def test_chinese_characters_are_words() -> None:
    """A Chinese character is a word: with probability one, each is replaced."""
    mountain, water = VOCABULARY.index("山"), VOCABULARY.index("水")
    larger, _ = augment(packed([([mountain, water], None)]), PLAIN, Augmentation(1, 1.0, 15), seed=0, name="t")
    copy = rows(larger.tokens)[1]
    assert [token for token, _ in copy][0::3] == [CLS, SEP]
    assert copy[1][0] != mountain and copy[2][0] != water


def test_a_backbone_without_tokenizer_is_refused() -> None:
    """A backbone without a tokenizer is refused with a correction."""
    split = _long(1)
    with pytest.raises(ConfigError, match="no tokenizer.*augment = 0"):
        augment(split, replace(PLAIN, tokenizer=None), Augmentation(1), seed=0, name="t")
