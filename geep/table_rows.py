"""The rows whose exits fill the exit tables: those that the model is trained on, or others that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings
from harness.core.tokens import Split, Task, TokenSet


class TableSettings(StrictSettings):
    """Settings that choose these rows. A model is more confident on its training rows, so they exit earlier than new ones."""

    table_rows: Literal["train", "holdout", "unlabelled", "cross_fitted"] = Field(
        "train",
        description="rows whose exits fill the tables: all of train, as in the paper; a share of train that training does not "
        "see (holdout); rows without labels, which training does not see either; all of train, each row observed on a model "
        "that was trained without it (cross_fitted)",
    )
    holdout: float = Field(
        0.0, ge=0, le=0.5, description='that share of train; above 0, table_rows = "holdout" need not be set'
    )

    folds: int = Field(
        0,
        ge=0,
        le=10,
        description='parts of train for table_rows = "cross_fitted", each of which costs a training more; above 0, table_rows '
        "need not be set",
    )

    @property
    def crossed(self) -> bool:
        """Whether exits of train rows are observed on models that have not seen them."""
        return self.folds > 0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.table_rows == "holdout" and not self.holdout:
            raise ValueError('table_rows = "holdout" needs a share of train: set holdout, e.g. to 0.2')
        if self.holdout and self.table_rows != "holdout" and "table_rows" in self.model_fields_set:
            raise ValueError(
                f'holdout = {self.holdout:g} holds rows back that table_rows = "{self.table_rows}" does not use: set one of them'
            )
        if self.folds == 1 or (self.table_rows == "cross_fitted") > self.crossed:
            raise ValueError('table_rows = "cross_fitted" needs two parts of train or more: set folds, e.g. to 5')
        others = self.table_rows != "cross_fitted" and ("table_rows" in self.model_fields_set or self.holdout)
        if self.crossed and others:
            used = "holdout" if self.holdout else self.table_rows
            raise ValueError(
                f'folds = {self.folds} trains models that table_rows = "{used}" does not use: set one of them'
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


def folds_of(train_split: Split, folds: int, seed: int) -> Iterator[tuple[Split, Tensor]]:
    """Yield, per fold, the rows to train on and the numbers of the others, int64; every row is among the others once.

    Raises:
        ConfigError: there are fewer rows than folds.
    """
    if len(train_split) < folds:
        raise ConfigError(
            f"method 'geep': folds = {folds} are more than the {len(train_split)} rows of train: set fewer"
        )
    part = torch.randperm(len(train_split), generator=torch.Generator().manual_seed(seed)) % folds
    for fold in range(folds):
        index = torch.nonzero(part != fold).squeeze(1)
        yield Split(train_split.tokens.select(index), train_split.labels[index]), torch.nonzero(part == fold).squeeze(1)
