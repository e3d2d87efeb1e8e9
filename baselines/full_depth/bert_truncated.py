"""The lower half of a pretrained BERT, fine-tuned as if it were all of it: the simplest way to a smaller model.

Dropping the top layers before fine-tuning is as good as DistilBERT on many tasks (Sajjad et al. 2023, "On the effect of dropping
layers of pre-trained transformer models", arXiv 2004.03844), so distillation has to beat it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from baselines.full_depth.bert import fine_tune
from harness.contracts import Fitted, Kind
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.registry import register
from harness.toolkit.fitted import FullDepth, load_model
from harness.toolkit.training import own_settings

DEFAULTS: dict[str, Any] = {"layers": None}  # half of the backbone's


def first_layers(backbone: Backbone, layers: int) -> Backbone:
    """The backbone without the layers from index ``layers`` on; weights are shared, not copied."""
    gone = tuple(f"layers.{i}." for i in range(layers, backbone.shape.layers))
    state = {name: tensor for name, tensor in backbone.state.items() if not name.startswith(gone or ("-",))}
    return replace(backbone, shape=replace(backbone.shape, layers=layers), state=state)


@register
class BertTruncated:
    """The first layers of the backbone (half, unless ``layers`` says otherwise), fine-tuned with labels as ``bert`` is.

    Config: ``layers``, the keys of :class:`~harness.toolkit.training.Recipe`, and ``head``.
    """

    name = "bert-truncated"
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
        depth = backbone.shape.layers
        layers = own_settings(self.name, config, DEFAULTS)["layers"]
        layers = max(1, depth // 2) if layers is None else layers
        if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= depth:
            raise ConfigError(f"{self.name}: layers = {layers!r} makes no sense: choose 1 to {depth}")
        name = f"{task.name} {self.name}"
        return fine_tune(task, first_layers(backbone, layers), config=config, seed=seed, name=name)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FullDepth:
        return FullDepth(*load_model(folder, backbone.device))

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return ["full"]
