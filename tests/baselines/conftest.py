"""A random miniature, a random task whose label is one of its tokens, and an untrained teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution.executors import exit_logits
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport


def _split(count: int, seed: int, labels: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (count,), generator=draw).tolist()
    rows = [[1, *torch.randint(5, 40, (n - 1,), generator=draw).tolist()] for n in lengths]
    segments = [[0] * (n // 2) + [1] * (n - n // 2) for n in lengths]
    return Split(TokenSet.from_lists(rows, segments, (0, 1, 2)), torch.tensor([row[1] % labels for row in rows]))


@pytest.fixture
def tiny_backbone() -> Backbone:
    """Six layers of width 16, four heads, random weights."""
    torch.manual_seed(0)
    shape = EncoderShape(layers=6, width=16, heads=4, intermediate=24, vocab_size=40, max_positions=12)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # BERT's 0.02 would make all hidden states alike
    return Backbone("tiny", shape, {k: v.clone() for k, v in encoder.state_dict().items()}, tokenizer=None)


@pytest.fixture
def random_task() -> Task:
    """24 rows to train on, 8 to choose on, three labels."""
    return Task("random", "en", 3, 12, _split(24, 1, 3), _split(8, 2, 3))


@pytest.fixture
def tuned_bert(tiny_backbone: Backbone) -> FullDepth:
    """A teacher with random weights, in eval mode."""
    torch.manual_seed(5)
    model = MultiExitModel(tiny_backbone.encoder(), 3, (), "fastbert")
    for parameter in model.teacher.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.0)
    return FullDepth(model.eval())


@pytest.fixture
def like_teacher(random_task: Task) -> Callable[[FullDepth], Task]:
    """Replace both splits by train with a teacher's answers as labels, so that the best dev epoch imitates it best."""

    def relabelled(teacher: FullDepth) -> Task:
        (at,) = teacher.operating_points(random_task.train)
        answers = torch.from_numpy(teacher.predict(random_task.train.tokens, at=at).logits.argmax(-1))
        split = Split(random_task.train.tokens, answers)
        return replace(random_task, train=split, dev=split)

    return relabelled


@pytest.fixture
def fit_both_ways(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, unseen: Split
) -> Callable[..., tuple[TrainingReport, TrainingReport]]:
    """Fit a method with the stored states of its frozen model, then without; both give the same logits."""

    def fit_twice(
        method: type[Any], config: dict[str, Any], stop_storing: Callable[[], None], tolerance: float
    ) -> tuple[TrainingReport, TrainingReport]:
        def fit() -> Any:
            return method().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)

        stored = fit()
        stop_storing()
        live = fit()
        logits = [exit_logits(one.model, unseen.tokens, EVALUATION) for one in (stored, live)]
        torch.testing.assert_close(*logits, atol=tolerance, rtol=tolerance)
        return stored.training, live.training

    return fit_twice
