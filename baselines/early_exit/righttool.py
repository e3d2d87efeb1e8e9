"""The Right Tool for the Job (Schwartz et al., ACL 2020): a few exits, trained together; exit by calibrated confidence."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator

from harness.core.errors import ConfigError
from harness.toolkit.joint_training import JointMethod, JointSettings
from harness.toolkit.method_settings import Layers

PUBLISHED = (0, 3, 5)  # early exits in BERT-base's 12 layers


class RightToolSettings(JointSettings):
    """Settings of The Right Tool."""

    layers: Layers | None = Field(
        None, description="layers of the early exits, each once; by default the paper's, scaled"
    )

    @field_validator("layers")
    @classmethod
    def _once(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and len(set(layers)) < len(layers):
            raise ValueError("give each layer once")
        return layers


def early_exits(depth: int) -> list[int]:
    """Scale the published exits of 12 layers to ``depth`` layers, halves rounded up, without the last layer."""
    return sorted({-(-(layer + 1) * depth // 12) - 1 for layer in PUBLISHED} - {depth - 1})


class RightTool(JointMethod[RightToolSettings]):
    """A few early exits trained together; calibrated confidence decides when to exit (rule ``confidence``).

    The loss is the sum of the exits' cross-entropies; every exit has a temperature of its own.
    The released code differs: there a head reads a learned sum of all layers so far and the logits of the heads before it.
    Here a head reads its own layer, as executors need it.
    """

    name = "righttool"
    rule = "confidence"
    settings = RightToolSettings

    def exits(self, depth: int, own: RightToolSettings) -> Sequence[int]:
        if own.layers is None:
            return early_exits(depth)
        if max(own.layers) > depth - 2:
            raise ConfigError(
                f"method '{self.name}': layers = {list(own.layers)} do not fit {depth} layers: choose from 0..{depth - 2}"
            )
        return sorted(own.layers)
