"""BERT, fine-tuned, at full depth: the reference of every comparison."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.fitted import FullDepth
from harness.toolkit.method_settings import Head, MethodSettings
from harness.toolkit.training import train


class BertSettings(MethodSettings):
    """Settings of a fine-tuned model."""

    head: Head = Field("fastbert", description="kind of classifier head")


def fine_tune(task: Task, backbone: Backbone, own: BertSettings, *, seed: int, name: str) -> FullDepth:
    """Minimise the cross-entropy of the last head; the best dev epoch is kept."""
    torch.manual_seed(seed)
    model = MultiExitModel(backbone.encoder(), task.num_labels, head=own.head)

    def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        *_, hidden = model.encoder.states(tokens, layout)
        return F.cross_entropy(model.teacher(hidden, layout).float(), labels)

    report = train(
        model, loss, task.train, own, seed=seed, name=name, evaluate=lambda: full_depth_score(model, task.dev)
    )
    return FullDepth(model, report)


class Bert(StagedMethod[BertSettings]):
    """The backbone fine-tuned with labels: all layers, one head (FastBERT's teacher)."""

    name = "bert"
    settings = BertSettings
    fitted = FullDepth

    def learn(self, own: BertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        return fine_tune(task, backbone, own, seed=seed, name=f"bert {task.name}")
