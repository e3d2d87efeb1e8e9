"""FastBERT (Liu et al., ACL 2020): fine-tune, freeze, self-distil a head per layer, leave by normalised entropy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Fitted, Kind, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.errors import ConfigError
from harness.fitted import SPEEDS, FullDepth, SequentialExits
from harness.registry import register
from harness.training import Recipe, train


@register
class FastBert:
    """Step 1 is the method ``bert`` itself; step 2 trains students on every layer but the last against its soft answer.

    The released code's slips are not copied: the learning rate decays over all distillation epochs, weight decay is
    applied, and the teacher answers without dropout. Direction of the divergence as in its code: KL(p_t || p_s).
    Inference shrinks the batch without a synchronisation per sample ("tuned").

    Config: training of step 2 as ``distill_epochs`` (default 5), ``distill_learning_rate`` (default 10 x
    ``learning_rate``, as published), and ``speeds``.
    """

    name = "fastbert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> SequentialExits:
        """Distil the heads; the last epoch is kept, as published."""
        tuned = teachers["bert"]
        if not isinstance(tuned, FullDepth):
            raise ConfigError(f"fastbert needs a fine-tuned full-depth 'bert', got {type(tuned).__name__}")
        torch.manual_seed(seed)
        bert = tuned.model
        model = MultiExitModel(backbone.encoder(), task.num_labels, range(bert.depth - 1), bert.head_kind)
        model.encoder.load_state_dict(bert.encoder.state_dict())
        model.teacher.load_state_dict(bert.teacher.state_dict())
        model.encoder.requires_grad_(False)
        model.teacher.requires_grad_(False)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            model.encoder.eval()  # frozen: no dropout in what students and teacher look at
            model.teacher.eval()
            with torch.no_grad():
                states = list(model.encoder.states(tokens, layout))[1:]
                target = model.teacher(states[-1], layout).float().log_softmax(-1)
            divergences = [
                F.kl_div(
                    model.student(i)(states[i], layout).float().log_softmax(-1), target, reduction="batchmean", log_target=True
                )
                for i in model.exits
            ]
            return torch.stack(divergences).sum()

        base = Recipe.of(config)
        recipe = Recipe.of(
            {
                **config,
                "epochs": config.get("distill_epochs", 5),
                "learning_rate": config.get("distill_learning_rate", 10 * base.learning_rate),
            }
        )
        report = train(model, loss, task.train, recipe, seed=seed, name=f"fastbert {task.name}")
        if tuned.training is not None:
            report = tuned.training + report  # step 1 is part of what FastBERT costs
        model.requires_grad_(True)
        return SequentialExits(model, report, tuple(config.get("speeds", SPEEDS)))

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> SequentialExits:
        return SequentialExits.load(folder, backbone.device)
