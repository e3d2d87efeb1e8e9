"""The embedded miniature."""

import pytest
import torch

from harness.data.embedded import load_embedded, vocabulary
from harness.encoder import miniature
from harness.encoder.model import Encoder


@pytest.mark.parametrize("language", miniature.LANGUAGES)
def test_tokenizer_covers_its_language(language):
    """Every word of a twin is one known token, whose id is its index in the vocabulary."""
    tokenizer = miniature.tokenizer(language)
    name = "lcqmc" if language == "zh" else "ag_news"
    entries = vocabulary(language)
    assert len(tokenizer) == len(entries) == miniature.SHAPE.vocab_size
    for text in load_embedded(name, sizes=(50, 5, 5)).train.texts:
        tokens = tokenizer.tokenize(text)
        assert "[UNK]" not in tokens
        assert tokens == (text.split() if language == "en" else list(text))
        assert tokenizer.convert_tokens_to_ids(tokens) == [entries.index(token) for token in tokens]


def test_unknown_text_is_tokenised():
    """Words outside the embedded language are split into letters instead of [UNK]."""
    assert miniature.tokenizer("en").tokenize("Zebra 42!") == ["z", "##e", "##b", "##r", "##a", "4", "##2", "!"]


def test_seed_decides_the_weights():
    """Two pretrainings from one seed are equal bit for bit, another seed differs, and the caller's generator is unchanged."""
    before = torch.random.get_rng_state()
    (shape, one), (_, again), (_, other) = (
        miniature.pretrain_miniature(seed, progress=False, steps=2) for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["word.weight"], other["word.weight"])
    Encoder(shape).load_state_dict(one)
    assert all(tensor.isfinite().all() for tensor in one.values())


def test_threads_do_not_change_the_weights():
    """One and two threads of torch give the same weights, bit for bit."""
    threads, weights = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            weights.append(miniature.pretrain_miniature(progress=False, steps=2)[1])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_stacked_muon_equals_that_of_torch():
    """All matrices take the steps of :class:`torch.optim.Muon`, up to its rounding to bfloat16."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 32), (8, 8), (24, 8)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    muons = (
        miniature._Muon(ours, lr=1.0, momentum=0.9),
        torch.optim.Muon(theirs, lr=1.0, weight_decay=0.0, momentum=0.9),
    )
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            other.grad = one.grad.clone()
        for muon in muons:
            muon.step()
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).norm() < 0.03 * other.norm()


def test_initial_heads_attend_to_neighbours():
    """Before training, the heads of layer 1 attend one and two tokens back and ahead at any position."""
    encoder = Encoder(miniature.SHAPE)
    miniature.wire(encoder, torch.Generator().manual_seed(0))
    places = encoder.position.weight[:40]
    query, key, _ = encoder.layers[0].qkv.weight.view(3, miniature.SHAPE.width, miniature.SHAPE.width).unbind(0)
    size = miniature.SHAPE.width // miniature.SHAPE.heads
    for head, distance in enumerate((-1, 1, -2, 2)):
        rows = slice(head * size, (head + 1) * size)
        scores = (places @ query[rows].T) @ (places @ key[rows].T).T
        inner = torch.arange(2, 38)
        assert torch.equal(scores[2:38].argmax(1), inner + distance)


def test_recipe_key_names_a_folder():
    """The key is stable within an installation and valid in a file name."""
    assert miniature.recipe_key() == miniature.recipe_key()
    assert miniature.recipe_key().isalnum()
