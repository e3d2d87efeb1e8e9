"""BERT, fine-tuned, full depth: what everything is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Fitted, Kind
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.registry import register
from harness.toolkit.fitted import FullDepth, load_model
from harness.toolkit.training import Recipe, dev_accuracies, own_settings, train


def fine_tune(task: Task, backbone: Backbone, *, config: Mapping[str, Any], seed: int, name: str) -> FullDepth:
    """Cross-entropy on the teacher head; the best dev epoch is kept."""
    torch.manual_seed(seed)
    model = MultiExitModel(backbone.encoder(), task.num_labels, head=config.get("head", "fastbert"))

    def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        *_, hidden = model.encoder.states(tokens, layout)
        return F.cross_entropy(model.teacher(hidden, layout).float(), labels)

    report = train(
        model,
        loss,
        task.train,
        Recipe.of(config),
        seed=seed,
        name=name,
        evaluate=lambda: dev_accuracies(model, task.dev)[-1],
    )
    return FullDepth(model, report)


@register
class Bert:
    """The backbone fine-tuned with labels: all layers, one head (FastBERT's teacher).

    Config: the keys of :class:`~harness.toolkit.training.Recipe`, and ``head``.
    """

    name = "bert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ()
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> FullDepth:
        """Fine-tune on train.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads.
        """
        own_settings(self.name, config, {})
        return fine_tune(task, backbone, config=config, seed=seed, name=f"bert {task.name}")

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FullDepth:
        return FullDepth(*load_model(folder, backbone.device))
