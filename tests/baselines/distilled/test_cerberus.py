"""CERBERUS: ends of several teachers on one body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.distilled.cerberus import Cerberus, CerberusSettings, branches_of, ends_loss
from baselines.distilled.distilbert import DistilBert
from baselines.early_exit.borrowed_exits import ExitRuleOnWeights
from baselines.full_depth.bert import Bert
from baselines.small_models.sparse_dan import SparseDan
from harness import registry
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.branches.tiled_layer import TiledLayer
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.fitted import FullDepth
from harness.toolkit.teachers.branched import BranchedTraining, Branches, FittedBranches
from harness.toolkit.training import train

BRIEF: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "precision": "float32"}


@pytest.fixture(scope="module")
def other_bert(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> FullDepth:
    """The same teacher with another seed."""
    return Bert().fit(signal_task, small_backbone, {}, config={**quick, "epochs": 2}, seed=1)


@pytest.fixture(scope="module")
def fitted(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, other_bert: FullDepth
) -> FittedBranches:
    """Two shared layers, and three ends of one layer for two teachers."""
    teachers = {"bert": trained_bert, "bert-b": other_bert}
    return Cerberus().fit(signal_task, small_backbone, teachers, config={**BRIEF, "ends": 3}, seed=0)


def test_it_is_registered() -> None:
    """The registry finds it, and all its teachers."""
    assert type(registry.get("cerberus")) is Cerberus
    assert all(registry.known(need) for need in Cerberus.needs)


def test_one_end_of_one_layer_is_plain_distillation(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """With one teacher and one end, weights equal those of a distilled student of the same layers, bit for bit."""
    teachers = {"bert": trained_bert}
    ours = Cerberus().fit(signal_task, small_backbone, teachers, config={**BRIEF, "alpha": 0.25}, seed=3)
    plain = {"layer_map": [0, 1, 2], "alpha_ce": 0.75, "alpha_hard": 0.25, "alpha_cos": 0.0, "temperature": 2.0}
    theirs = DistilBert().fit(signal_task, small_backbone, teachers, config={**BRIEF, **plain}, seed=3)
    weights = theirs.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.model.state_dict().items())
    assert ours.training is not None and theirs.training is not None
    assert ours.training.layer_passes == theirs.training.layer_passes


@pytest.mark.parametrize("change", [{}, {"norm_first": True, "gated": True, "biases": False}, {"activation": "relu"}])
def test_tiled_ends_equal_the_layers_one_by_one(change: dict[str, Any], signal_task: Task) -> None:
    """Logits and gradients of all weights are those of each end run alone, for every structure of a layer."""
    torch.manual_seed(0)
    branches = Branches(1, 3, 2)
    shape = EncoderShape(7, 16, 2, 24, 40, 16, dropout=0.0, **change)
    model = MultiExitModel(Encoder(shape), 3, branches.exits)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network = BranchedTraining(model, branches).eval()
    tokens = signal_task.train.tokens.select(range(6))
    weights = torch.randn(3, 6, 3)

    def gradients(ends: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        (torch.stack(list(ends)) * weights).sum().backward()
        return [torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()]

    for pad_to in (None, 12):
        layout = Layout(tokens.lengths.numpy(), pad_to, "cpu")
        alone = []
        for end in branches.ends:
            *_, hidden = model.encoder.states(tokens, layout, 1)
            for index in end:
                hidden = model.encoder.layers[index](hidden, layout)
            alone.append(model.student(end[-1])(hidden, layout))
        tiled = network(tokens, layout)
        torch.testing.assert_close(tiled, alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradients(tiled), gradients(alone), atol=1e-4, rtol=1e-3)


def test_a_tile_counts_the_passes_of_all_ends(signal_task: Task) -> None:
    """A step of 4 samples passes 2 shared layers and 3 ends of one layer: 20 layer passes, and the FLOPs of as many layers."""
    branches = Branches(2, 3, 1)
    network = BranchedTraining(MultiExitModel(Encoder(EncoderShape(5, 16, 2, 24, 40, 16)), 3, branches.exits), branches)
    split = Split(signal_task.train.tokens.select(range(4)), signal_task.train.labels[:4])
    costs = []
    for run in (network, lambda tokens, layout: list(network.model.encoder.states(tokens, layout))[-1:]):

        def loss(tokens: Any, layout: Layout, labels: Any, run: Any = run) -> torch.Tensor:
            return torch.stack(run(tokens, layout)).sum()

        recipe = CerberusSettings(epochs=1, batch_size=4, precision="float32")
        costs.append(train(network, loss, split, recipe, seed=0, name="toy"))
    assert [cost.layer_passes for cost in costs] == [20, 20]
    assert costs[0].flops == costs[1].flops > 0


def test_an_end_learns_from_its_own_teacher_only() -> None:
    """The gradient of teacher j's term is zero in all other ends; with more ends, teachers take turns."""
    ends = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    answers, labels = torch.randn(2, 4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    before = ends_loss(ends, answers, labels, 0.0, 2.0, all_labelled=True)
    grads = torch.autograd.grad(before, ends)
    changed = answers.detach().clone()
    changed[1] += torch.randn(4, 3)
    after = torch.autograd.grad(ends_loss(ends, changed, labels, 0.0, 2.0, all_labelled=True), ends)
    assert [torch.equal(a, b) for a, b in zip(grads, after, strict=True)] == [True, False, True]
    assert answers.grad is None


def test_pairs_of_teacher_and_end_may_be_permuted() -> None:
    """The loss is a sum over pairs: another order of pairs gives the same loss and each end the same gradient."""
    ends = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    answers, labels = torch.randn(3, 4, 3), torch.tensor([0, 1, -1, 0])
    order = [2, 0, 1]
    one = ends_loss(ends, answers, labels, 0.4, 2.0, all_labelled=False)
    other = ends_loss([ends[i] for i in order], answers[order], labels, 0.4, 2.0, all_labelled=False)
    assert one.item() == pytest.approx(other.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(one, ends), torch.autograd.grad(other, ends))


def test_the_answer_is_the_mean_of_the_ends(fitted: FittedBranches, unseen: Split) -> None:
    """Probabilities are averaged; every sample runs the shared layers and all ends."""
    (at,) = fitted.operating_points(unseen)
    found = fitted.predict(unseen.tokens, at=at)
    ends = fitted.answers_of(unseen.tokens, at)
    probabilities = torch.from_numpy(found.logits).exp()
    torch.testing.assert_close(probabilities, ends.exp().mean(0), atol=1e-6, rtol=1e-5)
    assert (ends[0] - ends[1]).abs().max() > 0.01  # they differ
    assert found.work.rows("layer") == len(unseen) * (2 + 3) and found.work.rows("head") == len(unseen) * 3
    assert (found.exit_layer == 4).all()
    reordered = replace(fitted, answering=(2, 0, 1)).predict(unseen.tokens, at=at)
    np.testing.assert_allclose(reordered.logits, found.logits, atol=1e-5)


@settings(max_examples=3)
@given(data=st.data())
def test_answers_do_not_depend_on_batches(
    data: st.DataObject,
    fitted: FittedBranches,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
    unseen: Split,
) -> None:
    """In any order and batch, compiled or not, answers are those of samples one by one."""
    (at,) = fitted.operating_points(unseen)
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(len(unseen)))))


def test_packed_weights_give_the_same_answers(fitted: FittedBranches, unseen: Split) -> None:
    """Ends also run on the engine with packed weights."""
    (at,) = fitted.operating_points(unseen)
    packed = fitted.predict(unseen.tokens, at=replace(at, execution=Execution(compute="packed")))
    np.testing.assert_allclose(packed.logits, fitted.predict(unseen.tokens, at=at).logits, atol=1e-5)


def test_the_best_end_runs_alone(fitted: FittedBranches, signal_task: Task) -> None:
    """It is chosen on dev without training; the other ends do not run."""
    own = CerberusSettings.read({"answer": "best"}, "x")
    best = Cerberus().decide(own, fitted, signal_task, 0)
    (at,) = best.operating_points(signal_task.dev)
    found = best.predict(signal_task.dev.tokens, at=at)
    right = (fitted.answers_of(signal_task.dev.tokens, at).argmax(-1) == signal_task.dev.labels).float().mean(-1)
    assert (found.logits.argmax(-1) == signal_task.dev.labels.numpy()).mean() == pytest.approx(float(right.max()))
    assert found.work.rows("layer") == 3 * len(signal_task.dev)
    assert best.model is fitted.model and fitted.answering == (0, 1, 2)


def test_saved_and_loaded(fitted: FittedBranches, unseen: Split, tmp_path: Path) -> None:
    """A loaded student gives the same logits; without the file of its ends it is refused."""
    one = replace(fitted, answering=(1,))
    one.save(tmp_path)
    loaded = FittedBranches.load(tmp_path, "cpu")
    (at,) = loaded.operating_points(unseen)
    assert loaded.branches == fitted.branches and loaded.training == fitted.training
    np.testing.assert_array_equal(loaded.predict(unseen.tokens, at=at).logits, one.predict(unseen.tokens, at=at).logits)
    (tmp_path / "branches.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ResultError, match="delete that folder"):
        FittedBranches.load(tmp_path, "cpu")


def test_teachers_of_any_kind_teach(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> None:
    """A bag of n-grams and another student with ends are teachers, too; their costs count, a shared teacher's once."""
    config = {"epochs": 1, "rows": 8, "width": 8, "label_epochs": 0}
    dan = SparseDan().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)
    teachers: dict[str, Any] = {"bert": trained_bert, "dan": dan}
    made = Cerberus().fit(signal_task, small_backbone, teachers, config={**BRIEF, "epochs": 1}, seed=0)
    assert made.training is not None and dan.training is not None and trained_bert.training is not None
    (own,) = [stage for stage in made.training.stages if stage.steps == 6]
    answers = 96 * 5  # of bert, for this student
    assert made.training.layer_passes == dan.training.layer_passes + answers + own.layer_passes
    again = {"bert": trained_bert, "cerberus": made}
    assert Cerberus().fit(signal_task, small_backbone, again, config={**BRIEF, "epochs": 1}, seed=0)


def test_a_student_with_ends_is_no_plain_teacher(
    fitted: FittedBranches, signal_task: Task, small_backbone: Backbone
) -> None:
    """Methods that run a teacher's layers one after another refuse it."""
    with pytest.raises(ConfigError, match="teacher 'bert' is FittedBranches"):
        DistilBert().fit(signal_task, small_backbone, {"bert": fitted}, config=BRIEF, seed=0)
    with pytest.raises(ConfigError, match="cannot use the weights of 'cerberus'"):
        ExitRuleOnWeights().fit(signal_task, small_backbone, {"cerberus": fitted}, config={}, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ends": 1}, "2 teachers for ends = 1"),
        ({"shared_layers": 5}, "more than the 5 layers"),
        ({"shared_layers": 3, "end_layers": 3}, "more than the 5 layers"),
    ],
)
def test_branches_that_do_not_fit_are_refused(config: dict[str, Any], message: str) -> None:
    """More teachers than ends, and more layers than there are to start from."""
    with pytest.raises(ConfigError, match=message):
        branches_of(CerberusSettings.read(config, "cerberus"), 5, 2)


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [({"vocab_size": 50}, 3, "teacher 'b' has a vocabulary of 50"), ({}, 4, "teacher 'b' has 4 labels, the dataset 3")],
)
def test_teachers_that_do_not_fit_are_refused(
    change: dict[str, Any],
    labels: int,
    message: str,
    signal_task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
) -> None:
    """Other labels or another vocabulary."""
    model = MultiExitModel(Encoder(replace(small_backbone.shape, **change)), labels)
    teachers = {"bert": trained_bert, "b": FullDepth(model.eval())}
    with pytest.raises(ConfigError, match=message):
        Cerberus().fit(signal_task, small_backbone, teachers, config=BRIEF, seed=0)


def test_tiles_have_no_weights_of_their_own(fitted: FittedBranches) -> None:
    """So nothing is trained or stored twice."""
    assert not list(TiledLayer(list(fitted.model.encoder.layers)[2:]).parameters())
