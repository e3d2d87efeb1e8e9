"""The losses of general distillation on text, each against its formula over pieces that are run one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.core.tokens import TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.masked_words import ABSENT
from harness.pretraining.general_distillation import EncoderDistillation
from harness.pretraining.text import batches
from harness.pretraining.text.batches import Batch
from harness.pretraining.text.shards import Shards
from tests.harness.pretraining.conftest import STUDENTS, VOCABULARY, Distil


def a_batch(shards: Shards, share: float = 0.3) -> Batch:
    """Rows of one piece and of several, some padded."""
    rows = np.concatenate([shards.rows("full")[0][:3], shards.rows("shared")[0][-3:]])
    made = batches.make(rows, shards.kinds, share, np.random.default_rng(0), torch.device("cpu"), shards.special)
    assert made.pieces is not None and (made.pieces == 0).any()
    return made


@pytest.fixture(scope="module")
def rows(distil: Distil, its_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    assert distil("distilbert", tmp_path_factory.mktemp("start") / "s", "--steps", "0") == 0
    shards = Shards.open(its_shards)
    assert shards.special.cls == 3 and shards.special.mask == len(VOCABULARY) - 2
    made = a_batch(shards)
    assert (made.ids == shards.special.mask).any()
    return made


def answers(model: Any, batch: Batch) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Return states h^0 .. h^L and word scores of every piece, each run alone, as lists by piece."""
    assert batch.pieces is not None
    states, words = [], []
    for ids, pieces in zip(batch.ids, batch.pieces, strict=True):
        for number in range(1, int(pieces.max()) + 1):
            one = TokenSet.from_lists([ids[pieces == number].tolist()])
            with torch.no_grad():
                states.append(list(model.encoder.states(one, Layout(one.lengths.numpy(), None, "cpu"))))
                words.append(model.scores(states[-1][-1]))
    return states, words


@pytest.mark.parametrize("soft_on", ["all", "masked"])
def test_distilberts_loss_on_text(rows: Batch, whole: Backbone, soft_on: str) -> None:
    """The loss is 5 T^2 KLDivLoss(batchmean) + 2 cross-entropy of masked words + 1 cosine, as for pieces run one by one."""
    model = DistilBert().general_distillation(whole, config={"soft_on": soft_on}, dropout=0.0).eval()
    assert model.words is not None
    torch.manual_seed(1)
    nn.init.normal_(model.words.bias)
    own_states, own = answers(model.words, rows)
    taught_states, taught = answers(model.teacher, rows)
    s, t = torch.cat(own), torch.cat(taught)
    assert rows.pieces is not None
    place = torch.full((rows.ids.numel(),), -1)
    place[rows.pieces.reshape(-1) > 0] = torch.arange(len(s))
    masked, labels = place[rows.where[rows.labels != ABSENT]], rows.labels[rows.labels != ABSENT]
    chosen = masked if soft_on == "masked" else torch.arange(len(s))
    kl = nn.KLDivLoss(reduction="batchmean")((s[chosen] / 2).log_softmax(-1), (t[chosen] / 2).softmax(-1)) * 4
    words = nn.CrossEntropyLoss()(s[masked], labels)
    last = [torch.cat([states[-1] for states in run]) for run in (own_states, taught_states)]
    cosine = nn.CosineEmbeddingLoss()(*last, torch.ones(len(s)))
    found = model(*rows.inputs)
    assert found.item() == pytest.approx((5 * kl + 2 * words + cosine).item(), rel=1e-4)


def test_compactberts_loss_on_text(rows: Batch, whole: Backbone) -> None:
    """Its released formula, as for pieces run one by one; attention is averaged over all keys of a row, padding included."""
    model: Any = DistilBert().general_distillation(whole, config={"objective": "compactbert"}, dropout=0.0).eval()
    torch.manual_seed(1)
    nn.init.normal_(model.words.bias)
    with torch.no_grad():
        for parameter in model.encoder.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own_states, own = answers(model.words, rows)
    taught_states, taught = answers(model.teacher, rows)
    s, t = torch.cat(own), torch.cat(taught)
    assert rows.pieces is not None
    place = torch.full((rows.ids.numel(),), -1)
    place[rows.pieces.reshape(-1) > 0] = torch.arange(len(s))
    masked, labels = place[rows.where[rows.labels != ABSENT]], rows.labels[rows.labels != ABSENT]
    expected = nn.CrossEntropyLoss()(s[masked], labels)
    expected += 5 * nn.KLDivLoss(reduction="batchmean")(s[masked].log_softmax(-1), t[masked].softmax(-1))
    length = rows.ids.shape[1]
    for m in (1, 2):  # of 4 layers, 2 and 4 teach
        h, wanted = (torch.cat([run[n] for run in runs]) for runs, n in ((own_states, m), (taught_states, 2 * m)))
        expected += 3 * nn.CosineEmbeddingLoss()(h, wanted, torch.ones(len(h)))
        divergence = torch.zeros(())
        for run, other in zip(own_states, taught_states, strict=True):
            a = _scores(model.encoder, m - 1, run[m - 1]).softmax(-1)
            b = _scores(model.teacher.encoder, 2 * m - 1, other[2 * m - 1]).softmax(-1)
            divergence += nn.KLDivLoss(reduction="sum")(a.log(), b)
        expected += 3 * divergence / (len(h) * 2 * length)  # two heads
    assert model(*rows.inputs).item() == pytest.approx(expected.item(), rel=1e-4)


def test_tinyberts_loss_on_text(rows: Batch, whole: Backbone) -> None:
    """The loss compares embeddings, states, and attention scores within a piece, as for pieces run one by one."""
    torch.manual_seed(0)
    model: Any = TinyBert().general_distillation(whole, config={"layers": 2, "width": 8}, dropout=0.0).eval()
    student, teacher = model.encoder, model.teacher.encoder
    squares: dict[str, list[torch.Tensor]] = {}
    for run in _pieces(rows):
        own, his = (_states(encoder, run) for encoder in (student, teacher))
        squares.setdefault("e", []).append((own[0] @ model.imitation.embedding.weight.T - his[0]).square())
        for m in (1, 2):
            difference = own[m] @ model.imitation.hidden.weight.T - his[2 * m]
            squares.setdefault(f"h{m}", []).append(difference.square())
            a, b = _scores(student, m - 1, own[m - 1]), _scores(teacher, 2 * m - 1, his[2 * m - 1])
            squares.setdefault(f"a{m}", []).append((a - b).square().reshape(-1))
    expected = sum(torch.cat(parts).mean().item() for parts in squares.values())
    found = model(*rows.inputs)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def _pieces(batch: Batch) -> list[list[int]]:
    assert batch.pieces is not None
    return [
        ids[pieces == number].tolist()
        for ids, pieces in zip(batch.ids, batch.pieces, strict=True)
        for number in range(1, int(pieces.max()) + 1)
    ]


def _states(encoder: Any, ids: list[int]) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(encoder.states(TokenSet.from_lists([ids]), Layout(np.array([len(ids)]), None, "cpu")))


def _scores(encoder: Any, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    width, heads = encoder.shape.width, encoder.shape.heads
    with torch.no_grad():
        q, k, _ = encoder.layers[layer].qkv(hidden).view(len(hidden), 3, heads, width // heads).unbind(1)
        return torch.einsum("ihd,jhd->hij", q, k) / (width // heads) ** 0.5


@pytest.mark.parametrize("method", [DistilBert(), TinyBert()], ids=STUDENTS)
def test_only_the_student_learns(method: Any, rows: Batch, whole: Backbone) -> None:
    """Gradients reach all weights of the student that are not frozen; the teacher gets none and is not saved."""
    model: EncoderDistillation = method.general_distillation(whole, config={"layers": 2}, dropout=0.1).train()
    model(*rows.inputs).sum().backward()
    without = {
        name.split("encoder.")[-1].split("student.")[-1] for name, p in model.named_parameters() if p.grad is None
    }
    frozen = {"segment.weight", "position.weight"} if method.name == "distilbert" else {"segment.weight"}
    assert without == frozen
    assert all(p.grad is None for p in model.teacher.parameters()) and not model.teacher.training
    assert not any("teacher" in name for name in model.state_dict())
    assert model.training_flops(rows=2, length=16, share=0.15, every=False) > 0
