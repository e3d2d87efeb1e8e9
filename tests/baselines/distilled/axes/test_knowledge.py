"""Every part of a stage's loss equals loops over samples, heads and tokens; nothing of the toolkit's losses is called."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.distilled.axes.knowledge import Knowledge, Teaching
from baselines.distilled.axes.layer_matching import Pairs
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.method_settings import Recipe

WIDE = EncoderShape(layers=3, width=12, heads=3, intermediate=16, vocab_size=40, max_positions=8, dropout=0.0)
LABELS = torch.tensor([2, 0, 1])
TOKENS = TokenSet.from_lists([[1, 7, 9, 30], [1, 12], [1, 5, 6]], None, (0, 1, 2))
PAIRS: Pairs = ((1, 2), (2, 3))


def drawn(shape: EncoderShape, seed: int) -> MultiExitModel:
    torch.manual_seed(seed)
    model = MultiExitModel(Encoder(shape), 3).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def teacher() -> MultiExitModel:
    return drawn(WIDE, 0)


def student(**change: Any) -> MultiExitModel:
    return drawn(replace(WIDE, layers=2, **change), 1)


def layout_of(tokens: TokenSet, pad_to: int | None = None) -> Layout:
    return Layout(tokens.lengths.numpy(), pad_to, "cpu")


def found(teacher: MultiExitModel, ours: MultiExitModel, pad_to: int | None = None, **own: Any) -> float:
    """Return the loss of a batch, packed or padded; a projection keeps the first dimensions and scales them."""
    recipe = Recipe(epochs=1, precision="float32")
    knowledge, basis = Knowledge(**own), torch.eye(WIDE.width, ours.encoder.shape.width)
    frozen = FrozenStates(teacher, TOKENS, [0, 1, 2, 3], recipe, name="t")
    teaching = Teaching(ours, teacher.encoder, knowledge, PAIRS, basis, frozen)
    with torch.no_grad():
        return teaching.loss(TOKENS, layout_of(TOKENS, pad_to), LABELS).item()


def run(model: MultiExitModel) -> tuple[list[list[Tensor]], Tensor]:
    """Return states of each sample alone, [T, D] by sample and layer, and logits [B, C]."""
    states, logits = [], []
    with torch.no_grad():
        for i in range(3):
            one = TOKENS.select([i])
            layout = layout_of(one)
            states.append(list(model.encoder.states(one, layout)))
            logits.append(model.teacher(states[-1][-1], layout)[0])
    return states, torch.stack(logits)


def vectors(model: MultiExitModel, layer: int, hidden: Tensor, part: int) -> Tensor:
    """Return queries (0), keys (1) or values (2) of a layer, counted from 1, [T, D]."""
    width = model.encoder.shape.width
    rows = slice(part * width, (part + 1) * width)
    qkv = model.encoder.layers[layer - 1].qkv
    return (hidden @ qkv.weight[rows].T + qkv.bias[rows]).detach()


def relations(one: Tensor, other: Tensor, heads: int) -> Tensor:
    """Return products by head, entry by entry: [heads, T, T]."""
    size, length = one.shape[1] // heads, len(one)
    scores = torch.zeros(heads, length, length)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(length):
            for j in range(length):
                scores[head, i, j] = one[i, part] @ other[j, part] / math.sqrt(size)
    return scores


def divergence(taught: Tensor, own: Tensor) -> float:
    """Return the sum over heads and tokens of KL, written out."""
    total = 0.0
    for p_row, q_row in zip(taught.flatten(0, 1).tolist(), own.flatten(0, 1).tolist(), strict=True):
        p, q = ([math.exp(value) for value in row] for row in (p_row, q_row))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return total


def softmaxes(logits: Tensor, temperature: float) -> list[list[float]]:
    powers = [[math.exp(value / temperature) for value in row] for row in logits.tolist()]
    return [[value / sum(row) for value in row] for row in powers]


@pytest.mark.parametrize("kind", ["kl", "ce", "mse"])
def test_answers(kind: str, teacher: MultiExitModel) -> None:
    """T^2 KL, cross-entropy of soft answers, or squared difference of logits; means over samples."""
    ours = student()
    (_, wanted), (_, logits) = run(teacher), run(ours)
    p, q = softmaxes(wanted, 2.0), softmaxes(logits, 2.0)
    pairs = [(a, b) for p_row, q_row in zip(p, q, strict=True) for a, b in zip(p_row, q_row, strict=True)]
    expected = {
        "kl": 4 * sum(a * math.log(a / b) for a, b in pairs) / 3,
        "ce": -sum(a * math.log(b) for a, b in pairs) / 3,
        "mse": sum((a - b) ** 2 for a, b in zip(wanted.flatten().tolist(), logits.flatten().tolist(), strict=True)) / 9,
    }[kind]
    assert found(teacher, ours, alpha_logits=0.5, logits=kind, temperature=2.0) == pytest.approx(expected / 2, rel=1e-4)


def test_labels_are_added(teacher: MultiExitModel) -> None:
    """The cross-entropy of the labels counts by its weight, without a teacher."""
    ours = student()
    _, logits = run(ours)
    hard = -sum(math.log(row[label]) for row, label in zip(softmaxes(logits, 1.0), LABELS.tolist(), strict=True)) / 3
    assert found(teacher, ours, alpha_hard=3.0) == pytest.approx(3 * hard, rel=1e-5)


@pytest.mark.parametrize("width", [12, 6])
@pytest.mark.parametrize("kind", ["mse", "cos"])
def test_hidden_states(width: int, kind: str, teacher: MultiExitModel) -> None:
    """Sum over pairs of layers of the mean over tokens; a narrower student is projected, from the directions of its start."""
    ours = student(width=width)
    (theirs, _), (own, _) = run(teacher), run(ours)
    expected = 0.0
    for m, n in PAIRS:
        rows = [(a, b) for i in range(3) for a, b in zip(own[i][m], theirs[i][n], strict=True)]
        for a, b in rows:
            wide = [*(a * (12 / width) ** 0.5).tolist(), *[0.0] * (12 - width)]
            goal = b.tolist()
            if kind == "mse":
                expected += sum((x - y) ** 2 for x, y in zip(wide, goal, strict=True)) / 12 / len(rows)
            else:
                norms = math.dist(wide, [0.0] * 12) * math.dist(goal, [0.0] * 12)
                expected += (1 - sum(x * y for x, y in zip(wide, goal, strict=True)) / norms) / len(rows)
    assert found(teacher, ours, alpha_hidden=1.0, hidden=kind, matching="top") == pytest.approx(expected, rel=1e-4)


def test_embeddings(teacher: MultiExitModel) -> None:
    """The squared difference of h^0, mean over tokens and dimensions."""
    ours = student()
    (theirs, _), (own, _) = run(teacher), run(ours)
    gaps = torch.cat([(own[i][0] - theirs[i][0]).flatten() for i in range(3)]).tolist()
    expected = sum(gap**2 for gap in gaps) / len(gaps)
    assert found(teacher, ours, alpha_embeddings=2.0) == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["scores", "probabilities"])
def test_attention(kind: str, teacher: MultiExitModel) -> None:
    """Squared difference of scores over pairs of tokens, or KL over tokens; means over heads, the same in padded rows."""
    ours = student(width=6)
    (theirs, _), (own, _) = run(teacher), run(ours)
    expected = 0.0
    for m, n in PAIRS:
        squares, kls, pairs, tokens = 0.0, 0.0, 0, 0
        for i in range(3):
            a, b = (
                relations(*(vectors(model, layer, states[i][layer - 1], part) for part in (0, 1)), 3)
                for model, layer, states in ((teacher, n, theirs), (ours, m, own))
            )
            squares += sum((x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
            kls += divergence(a, b)
            tokens, pairs = tokens + a.shape[1], pairs + a.shape[1] ** 2
        expected += squares / (3 * pairs) if kind == "scores" else kls / (3 * tokens)
    for pad_to in (None, 6):
        loss = found(teacher, ours, pad_to, alpha_attention=1.0, attention=kind)
        assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kind", "parts"), [("value", (2,)), ("qkv", (0, 1, 2))])
@pytest.mark.parametrize("heads", [None, 2])
def test_relations_between_tokens(
    kind: str, parts: tuple[int, ...], heads: int | None, teacher: MultiExitModel
) -> None:
    """KL of the softmax over a text of products of values, or of queries, keys and values, in heads of any number.

    The student has another width and another number of attention heads.
    """
    ours = student(width=6, heads=2)
    (theirs, _), (own, _) = run(teacher), run(ours)
    count, expected = heads or 3, 0.0
    for m, n in PAIRS:
        for part in parts:
            kls, tokens = 0.0, 0
            for i in range(3):
                a = vectors(teacher, n, theirs[i][n - 1], part)
                b = vectors(ours, m, own[i][m - 1], part)
                kls += divergence(relations(a, a, count), relations(b, b, count))
                tokens += len(a)
            expected += kls / (count * tokens)
    own_settings = {"alpha_token_relations": 1.0, "token_relations": kind, "relation_heads": heads}
    for pad_to in (None, 6):
        assert found(teacher, ours, pad_to, **own_settings) == pytest.approx(expected, rel=1e-4)


EVERYTHING: dict[str, Any] = {
    "alpha_embeddings": 1.0,
    "alpha_hidden": 1.0,
    "alpha_attention": 1.0,
    "alpha_token_relations": 1.0,
    "token_relations": "qkv",
}


def test_a_copy_of_the_teacher_has_no_distance(teacher: MultiExitModel) -> None:
    """All states, attention and relations of equal layers are equal."""
    same = tuple((layer, layer) for layer in (1, 2, 3))
    teaching = Teaching(teacher.encoder, teacher.encoder, Knowledge(**EVERYTHING), same)
    assert teaching.loss(TOKENS, layout_of(TOKENS), LABELS).item() == pytest.approx(0.0, abs=1e-6)
    assert teaching.trained is teacher.encoder


def test_the_teacher_gets_no_gradient(teacher: MultiExitModel) -> None:
    """Gradients reach the student's layers and the matrices beside it only."""
    ours = student(width=6)
    teaching = Teaching(ours.encoder, teacher.encoder, Knowledge(**EVERYTHING), PAIRS, torch.eye(12, 6))
    teaching.loss(TOKENS, layout_of(TOKENS), LABELS).backward()
    assert teaching.trained is teaching
    assert all(p.grad is None for p in teacher.parameters())
    assert not {p.data_ptr() for p in teaching.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    for matrix in (teaching.embedding, teaching.hidden):
        assert matrix is not None and matrix.weight.grad is not None and matrix.weight.grad.abs().sum() > 0
    assert all(layer.qkv.weight.grad.abs().sum() > 0 for layer in ours.encoder.layers)
