"""Hyper-parameters of training on raw text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings, explain

LEAST_RATE = 0.02  # last learning rate, as a share of the highest


class PretrainRecipe(StrictSettings):
    """Hyper-parameters. With the shards and the initial weights they determine all weights, bit for bit on equal machines.

    Attributes:
        steps: optimiser steps; 0 for an untrained control.
        rows: rows per batch on the device.
        accumulate: batches per step.
        mask_share: share of the tokens that are masked.
        dropout: during pretraining; the exported config keeps BERT's 0.1 for fine-tuning. 0 by default: a small model
            does not overfit its corpus.
        multi_exit: the loss is the mean of the losses from every layer's states through the same decoder, as ElasticBERT
            (arXiv 2110.07038) adds one loss per layer. All layers have the same weight. Mean and sum are equivalent for
            AdamW, whose steps do not depend on the scale of the loss.
        precision: as in :class:`harness.toolkit.method_settings.Recipe`.
    """

    steps: int = Field(default=10_000, ge=0)
    rows: int = Field(default=256, ge=1)
    accumulate: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0, lt=1)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, gt=0)
    mask_share: float = Field(default=0.15, gt=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    multi_exit: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(default=0, ge=0)

    @classmethod
    def from_options(cls, options: object, **defaults: Any) -> PretrainRecipe:
        """Make a recipe from command line options of the same names; an option that is ``None`` or missing was not given.

        Args:
            options: parsed arguments.
            defaults: values for options that were not given.

        Raises:
            ConfigError: names every option out of its range, with the allowed values.
        """
        given = {name: value for name in cls.model_fields if (value := getattr(options, name, None)) is not None}
        try:
            return cls(**{**defaults, **given})
        except ValidationError as error:
            lines = explain(error, cls, lambda place: f"--{str(place[0]).replace('_', '-')}")
            raise ConfigError("; ".join(lines)) from error

    def rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0): linear warm-up, then linear decay to 2 %."""
        warm = max(1, round(self.warmup * self.steps))
        rising = (step + 1) / warm
        falling = (self.steps - step) / max(1, self.steps - warm + 1)
        return self.learning_rate * min(1.0, rising, max(LEAST_RATE, falling))
