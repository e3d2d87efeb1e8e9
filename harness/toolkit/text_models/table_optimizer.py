"""AdamW for models with large tables, of which a step touches few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from harness.core.environment import memory_left
from harness.core.errors import ConfigError

COPIES = 5  # of a table while it is trained: weights, two moments, the best epoch, and those before the last stage


def check_room(what: str, parameters: int, device: str, advice: str) -> None:
    """Check that a device has the memory to train a float32 table of so many parameters.

    Args:
        what: method and table, for the error.
        advice: how to make it smaller, for the error.

    Raises:
        ConfigError: it is larger; nothing was made yet.
    """
    size, room = COPIES * 4 * parameters, memory_left(device)
    if size > room:
        raise ConfigError(f"{what} needs {size / 2**30:.1f} GiB, and {room / 2**30:.1f} GiB are left: {advice}")


def sparse_tables(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained tables of a model whose gradients are sparse (``nn.EmbeddingBag(sparse=True)``)."""
    tables = (part for part in model.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.sparse)
    weights = (table.weight for table in tables)
    return [weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad]


class TableAdamW(torch.optim.AdamW):
    """AdamW; groups with ``sparse = True`` take lazy steps (:class:`torch.optim.SparseAdam`) without weight decay.

    A lazy step moves the rows that have a gradient, and their moments, only.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **own: Any) -> None:
        super().__init__(groups, **own)
        tables = [parameter for group in self._sparse() for parameter in group["params"]]
        for (
            table
        ) in tables:  # as SparseAdam would, with a tensor for the step, so that states are stored as those of AdamW
            moments = {name: torch.zeros_like(table) for name in ("exp_avg", "exp_avg_sq")}
            self.state[table] = {"step": torch.zeros(()), **moments}
        self._lazy = torch.optim.SparseAdam(tables)

    def _sparse(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group.get("sparse")]

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        self._lazy.param_groups, self._lazy.state = self._sparse(), self.state
        self._lazy.step()
        for group in self._lazy.param_groups:
            for table in group["params"]:
                table.grad = None
        return super().step(closure)


def clipped_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters whose gradients are clipped: all but sparse tables."""
    left_out = set(sparse_tables(model))
    return [parameter for parameter in model.parameters() if parameter not in left_out]
