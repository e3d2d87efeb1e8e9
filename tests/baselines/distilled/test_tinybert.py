"""TinyBERT: shapes, both losses, trained and frozen weights, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.distilled.axes.initialisation import projected_encoder
from baselines.distilled.axes.knowledge import taught_places
from baselines.distilled.axes.layer_matching import matched_layers
from baselines.distilled.tinybert import LAYERS, Imitation, TinyBert, TinyBertSettings, student_shape
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder, EncoderLayer
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import KNOWN_SHAPES
from harness.toolkit.distillation import score_distance, soft_cross_entropy, soft_kl, states_and_logits, uniform_map
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import Recipe, train

QUICK: dict[str, Any] = {"epochs": 1, "intermediate_epochs": 1, "batch_size": 12, "learning_rate": 1e-3}


def fit(task: Task, backbone: Backbone, teacher: FullDepth, **config: Any) -> FullDepth:
    return TinyBert().fit(task, backbone, {"bert": teacher}, config={**QUICK, **config}, seed=0)


@pytest.fixture
def imitation(tiny_backbone: Backbone, tuned_bert: FullDepth) -> Imitation:
    """A student of 2 layers and width 8 with a teacher of 6 layers and width 16."""
    torch.manual_seed(3)
    teacher = tuned_bert.model.encoder
    return Imitation(
        *(lambda e, b: (e, teacher, b))(*projected_encoder(teacher, student_shape(teacher.shape, 2, 8, 12)))
    )


def naive_scores(layer: EncoderLayer, hidden: Tensor) -> Tensor:
    """[T, D] of one sample -> [heads, T, T], entry by entry."""
    length, width = hidden.shape
    size = width // layer.heads
    q, k = (
        hidden @ layer.qkv.weight[i * width : (i + 1) * width].T + layer.qkv.bias[i * width : (i + 1) * width]
        for i in (0, 1)
    )
    out = torch.zeros(layer.heads, length, length)
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(length):
            for j in range(length):
                out[head, i, j] = q[i, part] @ k[j, part] / math.sqrt(size)
    return out


def test_a_width_may_be_a_share_of_the_teachers() -> None:
    """1.0 is TinyBERT-6's shape on any backbone; others are rounded to a multiple of the heads; above 1 is refused."""
    base = KNOWN_SHAPES["bert-base-uncased"]
    assert student_shape(base, 6, 1.0, None) == replace(base, layers=6)
    assert student_shape(base, 4, 0.41, None).width == 312
    assert student_shape(base, 4, 0.0001, None).width == 12
    assert [TinyBertSettings(width=width).width for width in (1, 1.0)] == [1, 1.0]
    assert [type(TinyBertSettings(width=width).width) for width in (1, 1.0)] == [int, float]
    for wrong in (1.5, 0.0, -0.5, float("nan")):
        with pytest.raises(ConfigError, match="width = .* an integer above 0 or a number above 0 and up to 1"):
            TinyBertSettings.read({"width": wrong}, "tinybert")


def test_bert_base_gives_tinybert_4() -> None:
    """The default student of BERT-base has the published four layers, width 312, 12 heads and 1200 inside."""
    shape = student_shape(KNOWN_SHAPES["bert-base-uncased"], None, None, None)
    assert (shape.layers, shape.width, shape.heads, shape.intermediate) == (4, 312, 12, 1200)


@pytest.mark.parametrize("depth, layers", [(1, 1), (2, 1), (5, 1), (6, 2), (8, 2), (12, 4), (24, 8)])
def test_default_depth_is_about_a_third(tiny_backbone: Backbone, depth: int, layers: int) -> None:
    """By default the student has the largest divisor of the teacher's depth up to a third of it."""
    assert student_shape(replace(tiny_backbone.shape, layers=depth), None, None, None).layers == layers


@given(st.integers(1, 12), st.integers(1, 6))
def test_uniform_map_steps_evenly_from_embeddings_to_the_last(student: int, step: int) -> None:
    """g(0) is the embeddings, g(M) the last layer, and every step is N / M."""
    mapped = uniform_map(student * step, student)
    assert mapped[0] == 0 and mapped[-1] == student * step
    assert set(np.diff(mapped)) == {step}


def test_attention_scores_equal_a_loop(tuned_bert: FullDepth, random_task: Task) -> None:
    """Scores before softmax, packed and padded, equal q k / sqrt(d) entry by entry wherever both are tokens."""
    encoder = tuned_bert.model.encoder
    tokens = random_task.train.tokens.select([0, 1, 2])
    for pad_to in (None, 12):
        layout = Layout(tokens.lengths.numpy(), pad_to, "cpu")
        with torch.no_grad():
            hidden = encoder.embed(tokens, layout)
            scores = encoder.layers[2].scores(hidden, layout)
            for i in range(3):
                n = int(tokens.lengths[i])
                start = int(layout.starts[i])
                expected = naive_scores(encoder.layers[2], hidden[start : start + n])
                torch.testing.assert_close(scores[i, :, :n, :n], expected, atol=1e-5, rtol=1e-4)


def test_scores_equal_those_of_attention(tuned_bert: FullDepth, random_task: Task) -> None:
    """Softmax of the masked scores times V equals the output of the layer's attention."""
    encoder = tuned_bert.model.encoder
    tokens = random_task.train.tokens.select([4, 5, 6])
    layout = Layout(tokens.lengths.numpy(), 12, "cpu")
    layer = encoder.layers[0]
    with torch.no_grad():
        hidden = encoder.embed(tokens, layout)
        masked = layer.scores(hidden, layout).masked_fill(~layout.mask, -torch.inf)
        v = layer.qkv(hidden)[:, 32:].view(3, 12, 4, 4).transpose(1, 2)
        expected = (masked.softmax(-1) @ v).transpose(1, 2).reshape(36, 16)
        torch.testing.assert_close(layout.attend(layer.qkv(hidden), 4), expected, atol=1e-5, rtol=1e-4)


def test_score_distance_ignores_padding() -> None:
    """Entries whose query or key is padding do not count."""
    layout = Layout(np.array([2, 4]), None, "cpu")
    student, teacher = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = ((student - teacher)[0, :, :2, :2].square().sum() + (student - teacher)[1].square().sum()) / (
        3 * (4 + 16)
    )
    student[0, :, 2:, :] = torch.nan
    teacher[0, :, :, 2:] = torch.inf
    assert score_distance(student, teacher, layout.pairs).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_cross_entropy_is_summed_over_classes(temperature: float) -> None:
    """The prediction loss is -sum p ln q per sample; it is the teacher's entropy where both agree."""
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    expected = -sum(float(p[i, c]) * math.log(float(q[i, c])) for i in range(4) for c in range(3)) / 4
    assert soft_cross_entropy(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)
    entropy = -(p * p.log()).sum(-1).mean().item()
    assert soft_cross_entropy(teacher, teacher, temperature).item() == pytest.approx(entropy, rel=1e-5)


def test_imitation_loss_equals_a_loop_over_single_samples(
    imitation: Imitation, tuned_bert: FullDepth, random_task: Task
) -> None:
    """Stage 1's loss on a packed batch equals sums over samples run alone, padded, with layers 2 and 5 as teachers."""
    imitation.eval()
    torch.nn.init.normal_(imitation.hidden.weight)  # so that W_e and W_h cannot be confused
    tokens = random_task.train.tokens.select([7, 2, 9])
    batch = Layout(tokens.lengths.numpy(), None, "cpu")
    together = imitation.loss(tokens, batch, torch.zeros(3, dtype=torch.int64))

    student, teacher = imitation.student, tuned_bert.model.encoder
    squares = dict.fromkeys(["h0", "h1", "h2", "a1", "a2"], 0.0)
    rows = pairs = 0
    with torch.no_grad():
        for i in range(3):
            one = tokens.select([i])
            n = int(one.lengths)
            layout = Layout(one.lengths.numpy(), 12, "cpu")
            own, his = ([h[:n] for h in model.states(one, layout)] for model in (student, teacher))
            squares["h0"] += float((own[0] @ imitation.embedding.weight.T - his[0]).square().sum())
            for m, n_teacher in ((1, 3), (2, 6)):
                squares[f"h{m}"] += float((own[m] @ imitation.hidden.weight.T - his[n_teacher]).square().sum())
                a = naive_scores(student.layers[m - 1], own[m - 1])
                b = naive_scores(teacher.layers[n_teacher - 1], his[n_teacher - 1])
                squares[f"a{m}"] += float((a - b).square().sum())
            rows += n
            pairs += n * n
    expected = sum(v / (rows * 16 if key[0] == "h" else pairs * 4) for key, v in squares.items())
    assert together.item() == pytest.approx(expected, rel=1e-4)


def test_imitation_trains_student_and_projections_only(
    imitation: Imitation, tuned_bert: FullDepth, random_task: Task
) -> None:
    """Gradients reach every layer of the student and both projections, and never the teacher."""
    tokens = random_task.train.tokens.select(range(6))
    imitation.loss(tokens, Layout(tokens.lengths.numpy(), None, "cpu"), torch.zeros(6)).backward()
    missing = {name for name, p in imitation.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not missing
    assert all(p.grad is None for p in tuned_bert.model.parameters())
    trained = {p.data_ptr() for p in imitation.parameters()}
    assert not trained & {p.data_ptr() for p in tuned_bert.model.parameters()}


def test_a_perfect_copy_has_no_imitation_loss(tuned_bert: FullDepth, random_task: Task) -> None:
    """A student with the teacher's own shape and weights has an imitation loss of zero."""
    teacher = tuned_bert.model.encoder
    student, basis = projected_encoder(teacher, student_shape(teacher.shape, 6, 16, 24))
    student.load_state_dict(teacher.state_dict())
    tokens: TokenSet = random_task.train.tokens.select([0, 1])
    imitation = Imitation(student, teacher, basis).eval()
    loss = imitation.loss(tokens, Layout(tokens.lengths.numpy(), None, "cpu"), torch.zeros(2))
    assert loss.item() == pytest.approx(0.0, abs=1e-8)


def test_projected_embeddings_start_from_the_best_approximation(tuned_bert: FullDepth) -> None:
    """The embeddings start from the best approximation of their rank (the truncated singular value decomposition)."""
    teacher = tuned_bert.model.encoder
    student, basis = projected_encoder(teacher, student_shape(teacher.shape, 2, 8, None))
    word = teacher.word.weight.detach()
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    lost = (word - student.word.weight.detach() @ basis.T).square().sum()
    torch.testing.assert_close(lost, torch.linalg.svdvals(word)[8:].square().sum(), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(student.position.weight.detach(), teacher.position.weight.detach() @ basis)


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": 0},
        {"temperature": -2.0},
        {"layers": 4},
        {"layers": 7},
        {"layers": 0},
        {"layers": 2.0},
        {"width": 10},
        {"width": 20},
        {"width": 0},
        {"width": "8"},
        {"intermediate": 0},
        {"intermediate_epochs": 0},
        {"intermediate_learning_rate": 0.0},
        {"layer_map": [0, 1]},
    ],
)
def test_invalid_settings_are_refused_in_one_line(
    config: dict[str, Any], tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth
) -> None:
    """An invalid setting is a ConfigError of one line."""
    with pytest.raises(ConfigError) as caught:
        fit(random_task, tiny_backbone, tuned_bert, **config)
    assert "\n" not in str(caught.value)


def test_costs_both_stages(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """Every sample passes M student layers in each epoch of both stages, and N teacher layers once."""
    fitted = fit(random_task, tiny_backbone, tuned_bert, layers=3, intermediate_epochs=2, epochs=3)
    assert fitted.training is not None
    assert fitted.training.layer_passes == 24 * ((2 + 3) * 3 + 6)
    assert len(fitted.training.dev_scores) == 3
    assert fitted.cost.depth == 3


def test_the_teacher_does_not_change(tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth) -> None:
    """Both stages change no weight of the teacher, which stays in eval mode."""
    before = {k: v.clone() for k, v in tuned_bert.model.state_dict().items()}
    fit(random_task, tiny_backbone, tuned_bert)
    assert all(torch.equal(v, before[k]) for k, v in tuned_bert.model.state_dict().items())
    assert not tuned_bert.model.training


def test_learns_to_answer_like_its_teacher(
    tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth, like_teacher: Callable[[FullDepth], Task]
) -> None:
    """With both stages the student answers more like its teacher on train than one that hardly moved."""
    tokens = random_task.train.tokens
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    task = like_teacher(tuned_bert)

    def distance(fitted: FullDepth) -> float:
        with torch.no_grad():
            (_, own), (_, his) = (states_and_logits(m.model, tokens, layout) for m in (fitted, tuned_bert))
            return soft_kl(own, his, 1.0).item()

    start = fit(task, tiny_backbone, tuned_bert, learning_rate=1e-9, head="linear")
    end = fit(
        task,
        tiny_backbone,
        tuned_bert,
        learning_rate=2e-2,
        epochs=60,
        intermediate_epochs=5,
        batch_size=24,
        head="linear",
    )
    assert distance(end) < 0.8 * distance(start)


def test_stage_one_lowers_the_imitation_loss(imitation: Imitation, random_task: Task) -> None:
    """Stage 1 alone lowers the imitation loss."""
    tokens, labels = random_task.train.tokens, random_task.train.labels
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    with torch.no_grad():
        before = imitation.eval().loss(tokens, layout, labels).item()
    train(
        imitation,
        imitation.loss,
        random_task.train,
        Recipe(epochs=20, learning_rate=1e-2, batch_size=24),
        seed=0,
        name="stage 1",
    )
    with torch.no_grad():
        assert imitation.loss(tokens, layout, labels).item() < 0.9 * before


@pytest.mark.parametrize("width", [4, 12, 16])
def test_round_trip(
    width: int, tmp_path: Path, tiny_backbone: Backbone, random_task: Task, tuned_bert: FullDepth
) -> None:
    """A loaded student of any width has the same logits and training report."""
    fitted = fit(random_task, tiny_backbone, tuned_bert, width=width)
    fitted.save(tmp_path)
    loaded = TinyBert().load(tmp_path, random_task, tiny_backbone, {"bert": tuned_bert})
    (at,) = fitted.operating_points(random_task.dev)
    first, second = (model.predict(random_task.dev.tokens, at=at) for model in (fitted, loaded))
    np.testing.assert_array_equal(first.logits, second.logits)
    assert (first.exit_layer == 1).all() and loaded.model.encoder.shape.width == width
    assert loaded.training == fitted.training


def test_odd_head_width_is_rounded(tiny_backbone: Backbone, random_task: Task) -> None:
    """A student whose half width is odd still gets a head with two attention heads."""
    shape = replace(tiny_backbone.shape, heads=2)
    torch.manual_seed(0)
    teacher = FullDepth(MultiExitModel(Encoder(shape), 3).eval())
    assert fit(random_task, tiny_backbone, teacher, width=6).model.encoder.shape.width == 6


@pytest.mark.parametrize(("teacher", "student", "places"), [(12, 4, [0, 2, 3, 5, 6, 8, 9, 11, 12]), (6, 6, range(7))])
def test_states_that_teach_and_the_inputs_of_their_layers_are_read(
    teacher: int, student: int, places: Sequence[int]
) -> None:
    """For every taught layer, its state and its input, from which its attention follows."""
    pairs = matched_layers(LAYERS.matching, teacher, student)
    assert taught_places(LAYERS, pairs, teacher) == list(places)
