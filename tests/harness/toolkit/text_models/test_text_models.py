"""A model without Transformer layers: how it runs, is counted, stored, taught, and refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.distilled.distilbert import DistilBert
from baselines.early_exit.fastbert import FastBert
from harness.contracts import Execution, Fitted, OperatingPoint, Predictions
from harness.core.errors import ConfigError, MethodError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.core.work import BEFORE, MatrixCost, ModelCost, SumCost, Tally, Work
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.measure.passes import Contender, measure_untimed
from harness.measure.validation import check_work
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.distillation import NO_LABEL, hard_loss, rows_to_teach
from harness.toolkit.fitted import FullDepth
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.table_optimizer import TableAdamW
from harness.toolkit.text_models.teaching import (
    TaughtSettings,
    needs_unlabelled,
    soft_loss,
    teach,
)
from harness.toolkit.text_models.text_model import TextLimits, TextModel
from harness.toolkit.training import parameter_groups, train

WIDTH = 8


class MeanOfWords(TextModel):
    """The mean of a text's word vectors and a label layer."""

    def __init__(self, limits: TextLimits, labels: int, width: int = WIDTH) -> None:
        super().__init__(limits, labels)
        self.width = width
        self.words = nn.EmbeddingBag(limits.vocab_size, width, mode="mean", sparse=True)
        self.label = nn.Linear(width, labels)

    def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
        logits: Tensor = self.label(self.words(tokens.ids, tokens.offsets[:-1]))
        return logits

    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        return {
            "words.0": Tally(layout.count, layout.valid, layout.valid),
            "label.0": Tally(layout.count, layout.count, layout.count),
        }

    def blocks(self) -> Mapping[str, Any]:
        return {"words": SumCost(self.width), "label": MatrixCost(self.width * self.labels, "sample")}

    def facts(self) -> dict[str, Any]:
        return {"width": self.width}


class FittedWords(FittedText):
    kind = MeanOfWords


class Words(StagedMethod[TaughtSettings, FittedWords]):
    name = "words"
    needs = ("bert",)
    settings = TaughtSettings
    fitted = FittedWords

    def learn(self, own: TaughtSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedWords:
        torch.manual_seed(seed)
        model = MeanOfWords(TextLimits.of(task, backbone), task.num_labels)
        return FittedWords(model, teach(self.name, model, own, task, teachers, seed))


LEARNING = {"epochs": 12, "learning_rate": 5e-2, "batch_size": 8, "precision": "float32"}


@pytest.fixture(scope="module")
def words(signal_task: Task, small_backbone: Backbone) -> FittedWords:
    """It has learnt from labels."""
    return Words().fit(signal_task, small_backbone, {}, config={**LEARNING, "loss": "ce"}, seed=0)


@pytest.fixture(scope="module")
def with_unlabelled(signal_task: Task, unseen: Split) -> Task:
    """The task with 40 rows without labels."""
    return replace(signal_task, read_unlabelled=lambda: unseen.tokens)


def test_it_learns_from_labels_without_a_teacher(words: FittedWords, signal_task: Task, unseen: Split) -> None:
    """With loss ce no teacher is asked for, and test rows are answered better than by the most common label."""
    found = words.predict(unseen.tokens, at=OperatingPoint("full"))
    common = torch.bincount(unseen.labels).max() / len(unseen)
    assert (torch.from_numpy(found.logits.argmax(1)) == unseen.labels).float().mean() > common + 0.2
    assert words.training is not None and words.training.layer_passes == 0


@examples(max_examples=15)
@given(data=st.data())
def test_answers_do_not_depend_on_order_and_batch(
    data: st.DataObject,
    words: FittedWords,
    unseen: Split,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
) -> None:
    """Every order, batch size, window and protocol gives the answers of samples one by one."""
    order = data.draw(st.permutations(range(len(unseen))))
    same_however_run(words, OperatingPoint("full"), data.draw(executions), order)


def test_a_model_that_mixes_samples_is_caught(words: FittedWords, unseen: Split) -> None:
    """The check of the batch size sees a model whose answers depend on the other samples of the batch."""

    class Mixing(MeanOfWords):
        def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
            return super().forward(tokens, layout).roll(1, 0)

    mixing = Mixing(words.model.limits, words.model.labels)
    mixing.load_state_dict(words.model.state_dict())
    found = measure_untimed(Contender(FittedWords(mixing), OperatingPoint("full")), unseen.tokens, rounds=2, seed=0)
    assert found.rounds_agree is not None and found.rounds_agree < 1
    right = measure_untimed(Contender(words, OperatingPoint("full")), unseen.tokens, rounds=2, seed=0)
    assert right.rounds_agree == 1


def test_work_and_parameters_by_hand(words: FittedWords, unseen: Split) -> None:
    """Label layer in both conventions, additions in full; tables are looked up, the rest is multiplied."""
    found, n, tokens = words.predict(unseen.tokens, at=OperatingPoint("full")), len(unseen), len(unseen.tokens.ids)
    assert words.cost.flops(found.work, "linear") == 2 * WIDTH * 3 * n
    assert words.cost.flops(found.work, "full") == 2 * WIDTH * 3 * n + WIDTH * tokens
    assert words.cost == replace(words.cost, depth=0, params=40 * WIDTH + WIDTH * 3 + 3, looked_up=40 * WIDTH)
    assert (found.exit_layer == BEFORE).all() and found.work.valid_token_ratio() == 1
    check_work(found, words.cost)


def test_costs_are_found_by_name_before_kind() -> None:
    """Layers of one model may cost differently; a name without a cost of its own has that of its kind."""
    work = Work()
    for block in ("layer.0", "layer.1", "layer.2"):
        work.add(block, Tally(1, 10, 10))
    cost = ModelCost({"layer": MatrixCost(100), "layer.1": MatrixCost(1)}, depth=3, params=0)
    assert cost.flops(work, "linear") == 2 * 10 * (100 + 1 + 100)
    work.add("gate.0", Tally(1, 1, 1))
    assert not cost.knows("gate.0") and cost.knows("layer.7")
    with pytest.raises(KeyError):
        cost.flops(work, "linear")


@pytest.mark.parametrize(
    "exit_layer, blocks, message",
    [
        (0, ("bag.0",), "returned layers for a model without layers"),
        (BEFORE, ("layer.0",), 'blocks of kind "layer" for a model without layers'),
        (BEFORE, (), "counted no block"),
        (BEFORE, ("other.0",), "kind other"),
    ],
)
def test_wrong_work_of_a_model_without_layers_is_refused(exit_layer: int, blocks: Sequence[str], message: str) -> None:
    """Each mistake has a line of its own."""
    work = Work()
    for block in blocks:
        work.add(block, Tally(2, 2, 2))
    given = Predictions(np.zeros((2, 2), np.float32), np.full(2, exit_layer, np.int16), work)
    with pytest.raises(MethodError, match=message):
        check_work(given, ModelCost({"bag": SumCost(1), "layer": SumCost(1)}, depth=0, params=0))


def test_saved_models_answer_the_same(words: FittedWords, unseen: Split, tmp_path: Path) -> None:
    """TextLimits, shape, weights and the report of training are read back; a damaged file is refused."""
    words.save(tmp_path)
    loaded = FittedWords.load(tmp_path, "cpu")
    first, second = (one.predict(unseen.tokens, at=OperatingPoint("full")).logits for one in (words, loaded))
    np.testing.assert_array_equal(first, second)
    assert loaded.training == words.training and loaded.model.limits == words.model.limits
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ResultError, match="delete that folder"):
        FittedWords.load(tmp_path, "cpu")


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_it_learns_the_teachers_answers_on_rows_without_labels(
    loss: str, with_unlabelled: Task, small_backbone: Backbone, trained_bert: FullDepth, unseen: Split
) -> None:
    """With more rows it agrees with the teacher more often on them, and the teacher runs once over all of them."""
    agreeing = {}
    (at,) = trained_bert.operating_points(with_unlabelled.dev)
    teacher = trained_bert.predict(unseen.tokens, at=at).logits.argmax(1)
    for unlabelled in ("no", "yes"):
        config = {**LEARNING, "loss": loss, "unlabelled": unlabelled}
        made = Words().fit(with_unlabelled, small_backbone, {"bert": trained_bert}, config=config, seed=0)
        agreeing[unlabelled] = (made.predict(unseen.tokens, at=at).logits.argmax(1) == teacher).mean()
        assert made.training is not None and trained_bert.training is not None
        rows = len(with_unlabelled.train) + (len(unseen) if unlabelled == "yes" else 0)
        assert made.training.layer_passes - trained_bert.training.layer_passes == 5 * rows
        assert made.training.sample_passes - trained_bert.training.sample_passes == 12 * rows
    assert agreeing["yes"] > max(agreeing["no"], 0.75)


def test_labels_afterwards_never_make_it_worse_on_dev(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """The better stage on dev is kept; a stage that spoils the model is thrown away."""
    config = {**LEARNING, "label_epochs": 1}
    taught = Words().fit(signal_task, small_backbone, {"bert": trained_bert}, config=LEARNING, seed=0)
    for rate in (1e-2, 1e3):
        both = Words().fit(
            signal_task, small_backbone, {"bert": trained_bert}, config={**config, "label_learning_rate": rate}, seed=0
        )
        assert both.training is not None and taught.training is not None
        assert max(both.training.dev_scores) >= max(taught.training.dev_scores)
        assert both.training.steps == taught.training.steps + 96 // 8
    assert all(torch.equal(a, b) for a, b in zip(taught.model.parameters(), both.model.parameters(), strict=True))


def test_labels_count_where_there_are_any() -> None:
    """Rows without a label have no part in the cross-entropy, and a batch of only such rows has none at all."""
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([2, NO_LABEL, 0, NO_LABEL])
    torch.testing.assert_close(hard_loss(logits, labels), F.cross_entropy(logits[[0, 2]], labels[[0, 2]]))
    nothing = hard_loss(logits, torch.full((4,), NO_LABEL))
    nothing.backward()
    assert nothing == 0 and logits.grad is not None and not logits.grad.any()


def test_losses_to_the_teacher_by_hand() -> None:
    """mse is the mean squared difference of logits; kl is T^2 times the divergence of softened probabilities."""
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert soft_loss(TaughtSettings(loss="mse"))(student, teacher) == pytest.approx((1 + 4) / 2)
    p, q = (torch.softmax(one / 2, -1) for one in (teacher, student))
    expected = 4 * (p * (p / q).log()).sum()
    assert soft_loss(TaughtSettings(temperature=2.0))(student, teacher) == pytest.approx(float(expected))


def test_wanted_rows_without_labels_that_are_not_there_are_refused(signal_task: Task, with_unlabelled: Task) -> None:
    """An empty set is as none; ``auto`` does without, ``yes`` says how to get some; settings say whether they are read."""
    nothing = replace(signal_task, read_unlabelled=lambda: signal_task.train.tokens.select([]))
    for task in (signal_task, nothing):
        assert rows_to_teach(task, "auto", "words") is task.train
        with pytest.raises(ConfigError, match='words: unlabelled = "yes", but dataset .signal. has no rows'):
            rows_to_teach(task, "yes", "words")
    assert rows_to_teach(with_unlabelled, "no", "words") is with_unlabelled.train
    rows = rows_to_teach(with_unlabelled, "auto", "words")
    assert len(rows) == len(rows.labels) == 96 + 40 and (rows.labels[96:] == NO_LABEL).all()
    assert torch.equal(rows.tokens.select([100]).ids, with_unlabelled.unlabelled.select([4]).ids)  # type: ignore[union-attr]
    reads = [needs_unlabelled(TaughtSettings, one) for one in ({}, {"unlabelled": "no"}, {"loss": "ce"})]
    assert reads == [True, False, False]


def test_a_teacher_of_another_kind_is_refused(words: FittedWords, signal_task: Task, small_backbone: Backbone) -> None:
    """A model without layers cannot stand for the fine-tuned bert."""
    with pytest.raises(ConfigError, match="needs a fine-tuned full-depth 'bert', got FittedWords"):
        Words().fit(signal_task, small_backbone, {"bert": words}, config=LEARNING, seed=0)


def test_table_steps_are_those_of_torch() -> None:
    """Rows that occur in a batch move as under SparseAdam, all others and their moments stay; the rest is AdamW's."""
    torch.manual_seed(0)
    one, other = (MeanOfWords(TextLimits(10, 8), 3) for _ in range(2))
    other.load_state_dict(one.state_dict())
    recipe = TaughtSettings(learning_rate=0.1)
    mine = TableAdamW(parameter_groups(one, recipe), fused=True)
    groups = [
        {"params": [other.label.weight], "weight_decay": 0.01},
        {"params": [other.label.bias], "weight_decay": 0.0},
    ]
    theirs = (torch.optim.SparseAdam([other.words.weight], lr=0.1), torch.optim.AdamW(groups, lr=0.1))
    before = one.words.weight.detach().clone()
    for number in range(3):
        tokens = TokenSet.from_lists([[1, 2 + number], [2]])
        layout = Layout(np.array([2, 1]), None, "cpu")
        for model, optimizers in ((one, (mine,)), (other, theirs)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            F.cross_entropy(model(tokens, layout), torch.tensor([0, 2])).backward()
            for optimizer in optimizers:
                optimizer.step()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)
    assert torch.equal(one.words.weight[5:], before[5:]) and not torch.equal(one.words.weight[1:5], before[1:5])


def test_training_flops_are_those_of_the_blocks(signal_task: Task) -> None:
    """Three times the forward pass for every sample: forward, gradients of weights, gradients inside."""
    model = MeanOfWords(TextLimits(40, 16), 3)
    report = train(
        model,
        lambda tokens, layout, labels: F.cross_entropy(model(tokens, layout), labels),
        signal_task.train,
        TaughtSettings(epochs=2),
        seed=0,
        name="words",
    )
    assert report.flops == 3 * 2 * 96 * 2 * WIDTH * 3 and report.layer_passes == 0


@pytest.mark.parametrize("method", [DistilBert(), FastBert()], ids=lambda one: one.name)
def test_students_on_the_encoder_may_learn_from_rows_without_labels(
    method: StagedMethod[Any], with_unlabelled: Task, small_backbone: Backbone, trained_bert: FullDepth
) -> None:
    """DistilBERT and FastBERT's step 2 read them where they are told to, and say so; otherwise they do not ask for them."""
    passes = {}
    for unlabelled in ("no", "yes"):
        config = {"epochs": 1, "distill_epochs": 1, "unlabelled": unlabelled, "precision": "float32", "head": "linear"}
        config = {key: value for key, value in config.items() if key in method.settings.model_fields}
        asked = replace(with_unlabelled, read_unlabelled=lambda: 1 / 0) if unlabelled == "no" else with_unlabelled  # type: ignore[arg-type,return-value]
        made = method.train_weights(asked, small_backbone, {"bert": trained_bert}, config=config, seed=0)
        assert made.training is not None and trained_bert.training is not None
        passes[unlabelled] = made.training.sample_passes - trained_bert.training.sample_passes
        assert method.uses_unlabelled(config) == (unlabelled == "yes")  # type: ignore[attr-defined]
    assert passes == {"no": 96, "yes": 96 + 40}
