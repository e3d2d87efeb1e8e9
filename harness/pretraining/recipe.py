"""What a pretraining run does, as numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from harness.core.errors import ConfigError
from harness.toolkit.training import PRECISIONS

LEAST_RATE = 0.02  # of the learning rate, at the end


@dataclass(frozen=True)
class PretrainRecipe:
    """Hyper-parameters; weights follow from these, the shards and the start, bit for bit on one kind of machine.

    Attributes:
        steps: of the optimiser.
        rows: of a batch that goes through the device at a time.
        accumulate: such batches per step.
        mask_share: of the tokens, to be guessed.
        dropout: while pretraining; the written config keeps BERT's 0.1 for fine-tuning. None by default: a small
            model on its corpus is far from learning it by heart.
        multi_exit: the loss is the mean of the losses from every layer's states, each through the same decoder, as
            ElasticBERT (arXiv 2110.07038) adds one loss per layer. All layers weigh the same, since none is known to be
            the one that is left from; a mean or a sum is the same to AdamW, whose steps do not depend on a loss's scale.
        precision: as in :class:`harness.toolkit.training.Recipe`.
    """

    steps: int = 10_000
    rows: int = 256
    accumulate: int = 1
    learning_rate: float = 5e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    mask_share: float = 0.15
    dropout: float = 0.0
    multi_exit: bool = False
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: a number is out of its range, which the message tells.
        """
        ranges: dict[str, tuple[bool, str]] = {
            "steps": (self.steps >= 0, "0 (an untrained control) or more"),
            "rows": (self.rows >= 1, "at least 1"),
            "accumulate": (self.accumulate >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < 1, "between 0 and 1"),
            "warmup": (0 <= self.warmup < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip": (self.clip > 0, "above 0"),
            "mask_share": (0 < self.mask_share < 1, "between 0 and 1"),
            "dropout": (0 <= self.dropout < 1, "at least 0 and below 1"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (right, allowed) in ranges.items():
            if not right:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {allowed}")

    def rate(self, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, linear decay to 2 %."""
        warm = max(1, round(self.warmup * self.steps))
        rising = (step + 1) / warm
        falling = (self.steps - step) / max(1, self.steps - warm + 1)
        return self.learning_rate * min(1.0, rising, max(LEAST_RATE, falling))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
