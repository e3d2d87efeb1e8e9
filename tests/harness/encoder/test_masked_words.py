"""The masked language model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from harness.encoder.families.bert_family import BERT
from harness.encoder.masked_words import ABSENT, MaskedWordModel, budget
from harness.encoder.shape import EncoderShape
from harness.pretraining import export, start
from harness.pretraining.text.batches import make, places
from harness.pretraining.text.vocabulary import CLS, PAD, SEP

SHAPE = EncoderShape(layers=3, width=16, heads=2, intermediate=24, vocab_size=40, max_positions=16)


@pytest.fixture
def model() -> MaskedWordModel:
    """Return a model with random weights, large enough for tokens to have an effect."""
    made = start.fresh(SHAPE, 0.0, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=draw)
            else:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=draw))
        made.encoder.segment.weight[1:] = made.encoder.segment.weight[0]
    return made.eval()


ROWS = np.array(
    [
        [CLS, 7, 8, 9, SEP, CLS, 10, 11, SEP, CLS, 12, 13, 14, SEP, PAD, PAD],
        [CLS, *range(20, 34), SEP],
    ],
    dtype=np.uint16,
)


def states(model: MaskedWordModel, ids: np.ndarray) -> torch.Tensor:
    """Return hidden states after the last layer, [B, T, D]."""
    positions, pieces = places(ids)
    given = torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(positions), torch.from_numpy(pieces)
    with torch.no_grad():
        return list(model.states(*given))[-1].view(*ids.shape, -1)


def test_pieces_of_a_row_are_independent(model: MaskedWordModel) -> None:
    """A piece has the same states as in a row of its own."""
    together = states(model, ROWS)[0]
    for begin, end in ((0, 5), (5, 9), (9, 14)):
        alone = np.full((1, 16), PAD, dtype=np.uint16)
        alone[0, : end - begin] = ROWS[0, begin:end]
        torch.testing.assert_close(together[begin:end], states(model, alone)[0, : end - begin])
    other = ROWS.copy()
    other[0, 6] = 30
    moved = (states(model, other)[0] - together).abs().amax(1) > 1e-6
    assert moved.tolist() == [False] * 5 + [True] * 4 + [False] * 7


def test_full_rows_need_no_mask(model: MaskedWordModel) -> None:
    """The mask is omitted where it would hide nothing, with the same result."""
    ids = ROWS[1:]
    positions, pieces = places(ids)
    with torch.no_grad():
        bare = list(model.states(torch.from_numpy(ids.astype(np.int32)), torch.from_numpy(positions), None))[-1]
    torch.testing.assert_close(bare.view(1, 16, -1), states(model, ids))


def test_the_model_equals_berts_masked_language_model(model: MaskedWordModel) -> None:
    """With the exported weights, transformers' model gives the same scores up to float16."""
    config = BertConfig(**{k: v for k, v in BERT.config(SHAPE).items() if k not in ("architectures", "model_type")})
    theirs = BertForMaskedLM(config).eval()
    export.round_to_half(model)
    tensors = {name: value.float() for name, value in export.tensors_of(model, SHAPE).items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    theirs.tie_weights()
    ids = ROWS[1:].astype(np.int64)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits[0]
        found = model.scores(states(model, ROWS[1:])[0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_losses_of_every_layer(model: MaskedWordModel) -> None:
    """Each loss is the mean over the masked positions and trains only the layers up to its own."""
    kinds = np.array([0] * 5 + [1] * 35, dtype=np.uint8)
    batch = make(ROWS, kinds, 0.3, np.random.default_rng(0), torch.device("cpu"))
    assert batch.tokens == 30
    every, last = model(*batch.inputs, True), model(*batch.inputs)
    assert every.shape == (3,) and last.shape == (1,)
    torch.testing.assert_close(every[-1:], last)
    count = int((batch.labels != ABSENT).sum())
    for number, hidden in enumerate(model.states(*batch.inputs[:4])):
        scores = model.scores(hidden[batch.where[:count]]).log_softmax(-1)
        by_hand = -scores[torch.arange(count), batch.labels[:count]].mean()
        torch.testing.assert_close(every[number], by_hand)
    every[0].backward()
    assert model.encoder.layers[0].qkv.weight.grad is not None
    assert model.encoder.layers[1].qkv.weight.grad is None or not model.encoder.layers[1].qkv.weight.grad.any()


def test_no_masked_position_gives_no_loss(model: MaskedWordModel) -> None:
    """Without a masked position, the loss is zero instead of a division by zero."""
    batch = make(ROWS, np.zeros(40, np.uint8), 0.3, np.random.default_rng(0), torch.device("cpu"))
    assert model(*batch.inputs).item() == 0.0


@pytest.mark.parametrize("every", [False, True])
def test_flops_equal_executed_operations(every: bool) -> None:
    """The closed form of the forward pass equals torch's count of the matrix products, with attention's products."""
    model = start.fresh(SHAPE, 0.0, 0)
    batch = make(ROWS, np.array([0] * 5 + [1] * 35, dtype=np.uint8), 0.2, np.random.default_rng(0), torch.device("cpu"))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*batch.inputs, every)
    assert counter.get_total_flops() * 3 == model.training_flops(rows=2, length=16, share=0.2, every=every)
    assert len(batch.where) == 2 * budget(0.2, 16)
