"""Tiny models and token sets for the tests of the harness, none of them trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from harness.contracts import TokenSet
from harness.encoder import miniature
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape


def scatter(module: torch.nn.Module, std: float, seed: int) -> None:
    """Weights that tell samples apart: BERT's deviation of 0.02 would make all hidden states alike."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=draw)
            elif not name.endswith("weight"):
                parameter.normal_(0.0, 0.1, generator=draw)


@pytest.fixture(scope="session")
def tiny_shape() -> EncoderShape:
    """Four layers of width 16, two heads, 50 words, up to 16 tokens."""
    return EncoderShape(layers=4, width=16, heads=2, intermediate=24, vocab_size=50, max_positions=16)


@pytest.fixture(scope="session")
def make_model(tiny_shape: EncoderShape) -> Callable[..., MultiExitModel]:
    """Builds a multi-exit model of random weights, in eval mode."""

    def make(
        labels: int = 3,
        exits: Sequence[int] | None = None,
        head: str = "fastbert",
        shape: EncoderShape = tiny_shape,
        seed: int = 4,
    ) -> MultiExitModel:
        encoder = Encoder(shape)
        scatter(encoder, 0.3, seed)
        model = MultiExitModel(encoder, labels, range(shape.layers - 1) if exits is None else exits, head)
        for number, part in enumerate([model.teacher, *model.students.values()]):
            scatter(part, 0.8, seed + 1 + number)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., MultiExitModel]) -> MultiExitModel:
    """Three classes, an exit after every layer, each of them taken by somebody. Shared: do not train it."""
    return make_model()


@pytest.fixture(scope="session")
def make_tokens(tiny_shape: EncoderShape) -> Callable[..., TokenSet]:
    """Builds random samples of given lengths: [CLS] = 1, then words from 3 on; the second half is segment 1."""

    def make(lengths: Sequence[int], seed: int = 0, vocab: int = tiny_shape.vocab_size) -> TokenSet:
        rng = np.random.default_rng(seed)
        rows = [[1, *rng.integers(3, vocab, size=int(n) - 1).tolist()] for n in lengths]
        segments = [[0] * (len(row) - len(row) // 2) + [1] * (len(row) // 2) for row in rows]
        return TokenSet.from_lists(rows, segments, (0, 1, 2))

    return make


@pytest.fixture(scope="session")
def tokens(make_tokens: Callable[..., TokenSet]) -> TokenSet:
    """23 samples of 1 to 12 tokens."""
    return make_tokens(np.random.default_rng(3).integers(1, 13, size=23).tolist(), seed=4)


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Backbone]:
    """Builds a random backbone of two or more layers with the tokenizer of the embedded data: no pretraining."""

    def make(language: str = "en", layers: int = 3) -> Backbone:
        tokenizer = miniature.tokenizer(language)
        shape = EncoderShape(layers, 8, 2, 16, len(tokenizer), 64)
        encoder = Encoder(shape)
        scatter(encoder, 0.3, 7)
        state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        return Backbone("tiny", shape, state, tokenizer)

    return make
