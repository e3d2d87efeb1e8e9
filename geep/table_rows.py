"""The rows whose exits fill the exit tables: those that the model learns from, or others that it has not seen."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings
from harness.core.tokens import Split, Task, TokenSet


class TableSettings(StrictSettings):
    """Settings that choose these rows. The model is surer of rows that it has learnt from, so they exit earlier."""

    table_rows: Literal["train", "holdout", "unlabelled"] = Field(
        "train",
        description="rows whose exits fill the tables: all of train, as in the paper; a share of train that training does not "
        "see (holdout); rows without labels, which training does not see either",
    )
    holdout: float = Field(
        0.0, ge=0, le=0.5, description='that share of train; above 0, table_rows = "holdout" need not be set'
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.table_rows == "holdout" and not self.holdout:
            raise ValueError('table_rows = "holdout" needs a share of train: set holdout, e.g. to 0.2')
        if self.holdout and self.table_rows != "holdout" and "table_rows" in self.model_fields_set:
            raise ValueError(
                f'holdout = {self.holdout:g} holds rows back that table_rows = "{self.table_rows}" does not use: set one of them'
            )
        return self


def choose_rows(task: Task, own: TableSettings, seed: int) -> tuple[Split, TokenSet]:
    """Return rows to train on and rows to observe exits on.

    Raises:
        ConfigError: there are no rows without labels, or a share of train leaves none to train on.
    """
    if own.table_rows != "unlabelled":
        train, observed = split_off(task.train, own.holdout, seed)
        return train, observed.tokens
    if task.unlabelled is None:
        raise ConfigError(
            f"method 'geep': table_rows = \"unlabelled\", but dataset '{task.name}' has no rows without labels: set --max-train "
            "below its train rows (and --max-unlabelled above 0), or add a file unlabelled.csv to its folder"
        )
    return task.train, task.unlabelled


def split_off(train_split: Split, holdout: float, seed: int) -> tuple[Split, Split]:
    """Return rows to train on and rows to observe exits on: all rows twice for 0, else disjoint.

    Args:
        holdout: share of the rows to observe, 0 .. 0.5.

    Raises:
        ConfigError: no row is left to train on.
    """
    if not holdout:
        return train_split, train_split
    order = torch.randperm(len(train_split), generator=torch.Generator().manual_seed(seed))
    size = max(1, round(holdout * len(train_split)))
    if size == len(train_split):
        raise ConfigError(f"method 'geep': holdout = {holdout} leaves none of {size} rows to train on: set it to 0")

    def part(index: Tensor) -> Split:
        return Split(train_split.tokens.select(index), train_split.labels[index])

    return part(order[size:]), part(order[:size])
