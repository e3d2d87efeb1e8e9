"""DistilBERT and TinyBERT equal independent computations of their papers and released code.

Nothing of ``harness.toolkit.distillation`` is called: reference values come from torch's own losses, numpy and
arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.distilled.axes import taught_student
from baselines.distilled.axes.initialisation import projected_encoder
from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import Imitation, TinyBert, student_shape
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.flops import closed_form
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder, parameters_of
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import KNOWN_SHAPES, EncoderShape
from harness.toolkit import student_start
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport

BASE = KNOWN_SHAPES["bert-base-uncased"]
LENGTH, COUNT, WIDTH, HEADS = 7, 3, 16, 4


def twelve_layers() -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(EncoderShape(12, WIDTH, HEADS, 24, 40, 12, dropout=0.0))
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.fixture(scope="module")
def batch() -> Split:
    """Three samples of seven tokens, without padding."""
    ids = np.random.default_rng(0).integers(5, 40, (COUNT, LENGTH)).tolist()
    return Split(TokenSet.from_lists(ids, [[0] * 4 + [1] * 3] * COUNT, (0, 1, 2)), torch.tensor([2, 0, 1]))


def fitted(method: Any, batch: Split, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Any:
    """Return the teacher, the student at its start, and the loss of the last stage."""
    encoder = twelve_layers()
    torch.manual_seed(1)
    teacher = FullDepth(MultiExitModel(encoder, 3).eval())
    seen: dict[str, Any] = {}

    def caught(model: Any, loss_fn: Any, *_: Any, **__: Any) -> TrainingReport:
        seen.update(model=model.eval(), loss=loss_fn)
        return TrainingReport(0.0, 0, 0, 0)

    for module in (student_start, taught_student):
        monkeypatch.setattr(module, "train", caught)
    task = Task("t", "en", 3, 12, batch, batch)
    backbone = Backbone("b", encoder.shape, encoder.state_dict(), None)
    method.fit(task, backbone, {"bert": teacher}, config=config, seed=0)
    torch.manual_seed(2)
    nn.init.normal_(seen["model"].teacher.label.weight, std=20.0)  # so that student and teacher differ
    return teacher.model, seen["model"], seen["loss"]


def run(model: MultiExitModel, batch: Split) -> tuple[Tensor, Tensor]:
    """Return last states [rows, D] and logits [B, C]."""
    layout = Layout(batch.tokens.lengths.numpy(), None, "cpu")
    with torch.no_grad():
        *_, last = model.encoder.states(batch.tokens, layout)
        return last, model.teacher(last, layout)


def test_distilberts_layers(batch: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six layers of twelve are 0, 2, 4, 7, 9 and 11 of the teacher (extract_distilbert.py); embeddings are copied."""
    teacher, student, _ = fitted(DistilBert(), batch, monkeypatch)
    assert student.depth == 6
    for new, old in enumerate([0, 2, 4, 7, 9, 11]):
        for name, value in student.encoder.layers[new].state_dict().items():
            assert torch.equal(value, teacher.encoder.layers[old].state_dict()[name])
    assert torch.equal(student.encoder.word.weight, teacher.encoder.word.weight)


def test_distilberts_loss_equals_the_released_one(batch: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 T^2 KLDivLoss(batchmean) at T = 2, 2 cross-entropy and 1 CosineEmbeddingLoss(target 1), by torch's modules."""
    teacher, student, loss = fitted(DistilBert(), batch, monkeypatch)
    (states, logits), (wanted, soft) = run(student, batch), run(teacher, batch)
    kl = nn.KLDivLoss(reduction="batchmean")(nn.LogSoftmax(-1)(logits / 2), nn.Softmax(-1)(soft / 2)) * 2.0**2
    hard = nn.CrossEntropyLoss()(logits, batch.labels)
    cosine = nn.CosineEmbeddingLoss(reduction="mean")(states, wanted, torch.ones(len(states)))
    found = loss(batch.tokens, Layout(batch.tokens.lengths.numpy(), None, "cpu"), batch.labels)
    assert found.item() == pytest.approx((5 * kl + 2 * hard + 1 * cosine).item(), rel=1e-5)
    assert min(kl.item(), hard.item(), cosine.item()) > 0.01  # each of them must have an effect


def scores(encoder: Encoder, index: int, hidden: Tensor) -> Tensor:
    """Scores before softmax of a layer, [B, H, T, T], with one product per head."""
    layer = encoder.layers[index]
    width, size = encoder.shape.width, encoder.shape.head_width
    hidden = hidden.view(COUNT, LENGTH, width)
    parts = []
    for head in range(encoder.shape.heads):
        rows = slice(head * size, (head + 1) * size)
        q = hidden @ layer.qkv.weight[:width][rows].T + layer.qkv.bias[:width][rows]
        k = hidden @ layer.qkv.weight[width : 2 * width][rows].T + layer.qkv.bias[width : 2 * width][rows]
        parts.append(q @ k.transpose(1, 2) / math.sqrt(size))
    return torch.stack(parts, 1)


def test_tinyberts_layers_loss_equals_the_released_one(batch: Split) -> None:
    """MSE of scores before softmax, with entries up to -100 set to 0 on both sides, of teacher layers 3, 6, 9, 12; MSE of
    projected embeddings and states: all added up with equal weights (task_distill.py, on a batch without padding)."""
    teacher = twelve_layers().eval()
    student, basis = projected_encoder(teacher, student_shape(teacher.shape, 4, 8, None))
    imitation = Imitation(student, teacher, basis).eval()
    torch.manual_seed(3)
    nn.init.normal_(imitation.hidden.weight)
    layout = Layout(batch.tokens.lengths.numpy(), None, "cpu")
    with torch.no_grad():
        own, his = (list(model.states(batch.tokens, layout)) for model in (student, teacher))
        mse, total = nn.MSELoss(), 0.0
        for block in range(4):
            a, b = scores(student, block, own[block]), scores(teacher, block * 3 + 2, his[block * 3 + 2])
            a, b = (torch.where(x <= -1e2, torch.zeros_like(x), x) for x in (a, b))
            total += mse(a, b).item()
        for m in range(5):
            projection = imitation.embedding if m == 0 else imitation.hidden
            total += mse(own[m] @ projection.weight.T, his[m * 3]).item()
        assert imitation.loss(batch.tokens, layout, batch.labels).item() == pytest.approx(total, rel=1e-4)


def test_masked_positions_do_not_count(batch: Split) -> None:
    """The same samples in a batch with a longer one have the same scores' distance, weighted by pairs of tokens."""
    teacher = twelve_layers().eval()
    student, basis = projected_encoder(teacher, student_shape(teacher.shape, 4, 8, None))
    imitation = Imitation(student, teacher, basis).eval()
    longer = np.random.default_rng(1).integers(5, 40, 12).tolist()
    tokens = TokenSet.from_lists([batch.tokens.ids[:LENGTH].tolist(), longer], None, (0, 1, 2))

    def attention_only(one: TokenSet) -> float:
        layout = Layout(one.lengths.numpy(), None, "cpu")
        with torch.no_grad():
            states, taught = list(student.states(one, layout)), list(teacher.states(one, layout))
            rest = nn.functional.mse_loss(imitation.embedding(states[0]), taught[0])
            for m in range(1, 5):
                rest = rest + nn.functional.mse_loss(imitation.hidden(states[m]), taught[3 * m])
            return (imitation.distance(states, taught, layout, layout.tokens) - rest).item()

    apart = [attention_only(tokens.select([i])) for i in range(2)]
    together = attention_only(tokens)
    assert together == pytest.approx((apart[0] * LENGTH**2 + apart[1] * 144) / (LENGTH**2 + 144), rel=1e-3)


def test_tinyberts_prediction_loss(batch: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """-sum_c p_c log q_c at T = 1, mean over samples; the released mean over classes, too, is this divided by C."""
    teacher, student, loss = fitted(TinyBert(), batch, monkeypatch)
    p, q = (run(model, batch)[1].double().softmax(-1).numpy() for model in (teacher, student))
    found = loss(batch.tokens, Layout(batch.tokens.lengths.numpy(), None, "cpu"), batch.labels).item()
    assert found == pytest.approx(float(-(p * np.log(q)).sum() / COUNT), rel=1e-5)
    assert found / 3 == pytest.approx(float((-p * np.log(q)).mean()), rel=1e-5)


def arithmetic(layers: int, width: int, inner: int, vocab: int, segments: int) -> int:
    """Return the number of parameters of a BERT encoder."""
    linear = 4 * (width * width + width) + width * inner + inner + inner * width + width
    return (vocab + 512 + segments) * width + 2 * width + layers * (linear + 4 * width)


@pytest.mark.parametrize(
    ("shape", "counted", "published", "pooler"),
    [
        # DistilBertModel has 66,362,880; ours has one more row of zeros for its only segment.
        (KNOWN_SHAPES["distilbert-base-uncased"], 66_362_880 + 768, 66e6, 0),
        # Distilled here from BERT-base: with the teacher's two segments.
        (student_shape(BASE, 6, 768, None), 66_362_880 + 2 * 768, 66e6, 0),
        # TinyBERT's counts include a pooler, which ours does not have.
        (student_shape(BASE, None, None, None), 14_252_592, 14.5e6, 312 * 313),
        (KNOWN_SHAPES["huawei-noah/TinyBERT_General_4L_312D"], 14_252_592, 14.5e6, 312 * 313),
        (KNOWN_SHAPES["huawei-noah/TinyBERT_General_6L_768D"], 66_364_416, 67e6, 768 * 769),
    ],
)
def test_parameters_equal_the_published_numbers(
    shape: EncoderShape, counted: int, published: float, pooler: int
) -> None:
    """At BERT-base's shape the counts are exact; with a pooler they are within 1 % of the papers' figures."""
    with torch.device("meta"):
        found = parameters_of(Encoder(shape))
    assert found == counted == arithmetic(shape.layers, shape.width, shape.intermediate, 30522, shape.type_vocab)
    assert found + pooler == pytest.approx(published, rel=0.011)


def test_a_distilled_student_of_bert_base_with_its_head() -> None:
    """DistilBERT has 66,364,416 parameters and FastBERT's head for two classes."""
    with torch.device("meta"):
        encoder = Encoder(student_shape(BASE, 6, 768, None))
        model = MultiExitModel(encoder, 2)
    inner = 128
    head = 768 * inner + inner + 5 * (inner * inner + inner) + inner * 2 + 2
    assert model.cost().params == 66_364_416 + head


def test_flops_of_the_students() -> None:
    """DistilBERT's six layers cost half of BERT's twelve, TinyBERT's four the products of their widths."""

    def layers_only(shape: EncoderShape) -> int:
        both = [closed_form(shape, 2, 128, exit_layer=layers)["linear"] for layers in (1, shape.layers)]
        return (both[1] - both[0]) // (shape.layers - 1) * shape.layers

    half = layers_only(KNOWN_SHAPES["distilbert-base-uncased"])
    assert 2 * half == layers_only(BASE) == 12 * 2 * 128 * (4 * 768**2 + 2 * 768 * 3072)
    tiny = layers_only(student_shape(BASE, None, None, None))
    assert tiny == 4 * 2 * 128 * (4 * 312**2 + 2 * 312 * 1200)
    assert layers_only(BASE) / tiny == pytest.approx(18.66, abs=0.01)  # published: 22.5B to 1.2B


def test_padding_does_not_count_in_any_loss(batch: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """For samples of different lengths, each loss is the same for packed rows and for rows with any padding."""
    tokens = TokenSet.from_lists([batch.tokens.ids[:LENGTH].tolist(), [5, 9, 7], [8, 6]], None, (0, 1, 2))
    labels, lengths = batch.labels[:3], tokens.lengths.numpy()
    layouts = [Layout(lengths, pad_to, "cpu") for pad_to in (None, LENGTH, LENGTH + 5)]
    for method in (DistilBert(), TinyBert()):
        *_, loss = fitted(method, batch, monkeypatch)
        with torch.no_grad():
            found = [loss(tokens, layout, labels).item() for layout in layouts]
        assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-4)
    teacher = twelve_layers().eval()
    student, basis = projected_encoder(teacher, student_shape(teacher.shape, 4, 8, None))
    imitation = Imitation(student, teacher, basis).eval()
    with torch.no_grad():
        found = [imitation.loss(tokens, layout, labels).item() for layout in layouts]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-4)
