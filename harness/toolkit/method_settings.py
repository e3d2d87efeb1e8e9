"""Settings that methods share: training, head, entropy thresholds and budgets. A method's own model adds its keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from harness.core.settings import StrictSettings
from harness.toolkit.budgets import BUDGETS, budget_name

SPEEDS = (0.1, 0.5, 0.8)  # those of FastBERT's Table 2 (ACL 2020)
Head = Literal["fastbert", "linear"]
Precision = Literal["auto", "float32", "bfloat16"]


def _distinct(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len({f"{number:g}" for number in numbers}) < len(numbers):
        raise ValueError("a number is given twice: numbers must differ in their first six digits")
    return numbers


def _rising(numbers: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(numbers))


# Profiles have lists; models have tuples, which cannot change. Operating points are named after these numbers (%g).
Speeds = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(strict=False, min_length=1), AfterValidator(_distinct)
]
Budgets = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    Field(strict=False, min_length=1),
    AfterValidator(_distinct),
    AfterValidator(_rising),
]

Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]  # layer indices


def speed_name(speed: float) -> str:
    """Return the name of the operating point at an entropy threshold."""
    return f"speed={speed:g}"


class Recipe(StrictSettings):
    """Hyper-parameters of one training run. Defaults are FastBERT's (ACL 2020), with BERT's weight decay."""

    epochs: int = Field(3, ge=1, description="passes over the train split, at most; the learning rate decays over them")
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many epochs without a better dev score and keep the best; by default never",
    )
    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(32, ge=1, description="samples per step")
    weight_decay: float = Field(0.01, ge=0, description="weight decay; norms and biases have none")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    clip: float = Field(1.0, gt=0, allow_inf_nan=True, description="largest norm of the gradient")
    head_rate: float = Field(1.0, gt=0, description="factor on the learning rate of heads")
    precision: Precision = Field(
        "auto", description="number type of matrix products; auto: bfloat16 if the device has it in hardware"
    )

    @field_validator("patience")
    @classmethod
    def _not_longer(cls, patience: int | None, known: ValidationInfo) -> int | None:
        epochs = known.data.get("epochs")
        if patience is not None and epochs is not None and patience > epochs:
            raise ValueError(f"it is longer than the {epochs} epochs: lower it, or raise epochs")
        return patience

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values; ``None`` keeps a value as it is."""
        return self.model_copy(update={key: value for key, value in values.items() if value is not None})


class MethodSettings(Recipe):
    """Settings that every method accepts: a profile sets them for all methods at once, and each uses what it needs."""

    head: Head | None = Field(None, description="kind of classifier head; by default the method's own choice")
    speeds: Speeds = Field(SPEEDS, description="entropy thresholds of early-exit methods (FastBERT's speed)")
    budgets: Budgets = Field(BUDGETS, description="mean layers of early-exit methods, as shares of the full depth")

    @property
    def point_names(self) -> list[str]:
        """Names of the operating points that a method with these settings has."""
        return ["full"]


class SpeedSettings(MethodSettings):
    """Settings of a method with one operating point per speed."""

    @property
    def point_names(self) -> list[str]:
        return [speed_name(speed) for speed in self.speeds]


class BudgetSettings(MethodSettings):
    """Settings of a method whose exit rule is tuned on dev at budgets."""

    @property
    def point_names(self) -> list[str]:
        return [budget_name(budget) for budget in self.budgets]


class SpeedBudgetSettings(BudgetSettings):
    """Settings of a method with operating points at speeds, then at budgets."""

    @property
    def point_names(self) -> list[str]:
        return [*map(speed_name, self.speeds), *map(budget_name, self.budgets)]
