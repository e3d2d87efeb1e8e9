"""The lower half of a pretrained BERT, fine-tuned as a whole model: the simplest way to a smaller model.

Dropping the top layers before fine-tuning is as good as DistilBERT on many tasks (Sajjad et al. 2023, "On the effect of dropping
layers of pre-trained transformer models", arXiv 2004.03844), so distillation has to be better than that.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from baselines.full_depth.bert import BertSettings, fine_tune
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.fitted import FullDepth


class BertTruncatedSettings(BertSettings):
    """Settings of ``bert-truncated``."""

    layers: int | None = Field(None, ge=1, description="layers to keep; by default half of the backbone's")


def first_layers(backbone: Backbone, layers: int) -> Backbone:
    """Return the backbone without the layers from index ``layers`` on; weights are shared, not copied."""
    shape = backbone.shape.of_layers(range(layers))
    gone = tuple(f"layers.{i}." for i in range(shape.blocks, backbone.shape.blocks))
    state = {name: tensor for name, tensor in backbone.state.items() if not name.startswith(gone or ("-",))}
    return replace(backbone, shape=shape, state=state)


class BertTruncated(StagedMethod[BertTruncatedSettings]):
    """The first layers of the backbone, fine-tuned with labels as ``bert`` is."""

    name = "bert-truncated"
    settings = BertTruncatedSettings
    fitted = FullDepth

    def learn(
        self, own: BertTruncatedSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> FullDepth:
        depth = backbone.shape.layers
        layers = own.layers or max(1, depth // 2)
        if layers > depth:
            raise ConfigError(f"{self.name}: layers = {layers}, but {backbone.name} has {depth}: choose 1 to {depth}")
        return fine_tune(task, first_layers(backbone, layers), own, seed=seed, name=f"{task.name} {self.name}")
