"""FLOPs in closed form, from a shape alone; printed by ``geep-bench flops``."""

from __future__ import annotations

import numpy as np

from harness.core.errors import ConfigError
from harness.core.work import ModelCost, Tally, Work
from harness.encoder.layout import Layout
from harness.encoder.model import HEADS, PROJECTION, embedding_costs
from harness.encoder.shape import EncoderShape, layer_cost


def closed_form(
    shape: EncoderShape,
    labels: int,
    seq_len: int,
    *,
    exit_layer: int | None = None,
    heads: str = "one",
    head: str = "fastbert",
) -> dict[str, int]:
    """Return the FLOPs of one sample of ``seq_len`` tokens, as ``linear`` and ``full`` (see :mod:`harness.core.work`).

    Args:
        exit_layer: 1 .. L, the last layer executed; default L.
        heads: ``"one"``: a single head, at the exit; ``"every"``: one after every layer, as FastBERT runs them.

    Raises:
        ConfigError: a number is out of range.
    """
    depth = shape.layers if exit_layer is None else exit_layer
    if not 1 <= depth <= shape.layers:
        raise ConfigError(f"--exit {depth} is outside 1..{shape.layers}, the layers of this backbone")
    if labels < 2:
        raise ConfigError(f"--labels {labels}: a classifier has at least 2")
    if not 1 <= seq_len <= shape.max_positions:
        raise ConfigError(f"--seq-len {seq_len} is outside 1..{shape.max_positions}, the positions of this backbone")
    unpruned = HEADS[head](shape.unpruned_width or shape.width, labels)
    classifier = HEADS[head](shape.width, labels, unpruned.inner)
    work, layout = Work(), Layout(np.array([seq_len]), None, "cpu")
    if shape.embedding:
        work.add(f"{PROJECTION}.0", Tally(1, seq_len, seq_len))
    for index in range(depth):
        work.add(f"layer.{index}", layout.tally(reach=shape.reach(index)))
        if heads == "every" or index == depth - 1:
            work.add(f"head.{index}", Tally(1, seq_len, seq_len, seq_len))
    layers = {f"layer.{index}": layer_cost(shape, index) for index in range(depth)}
    blocks = {**layers, "head": classifier.cost(), **embedding_costs(shape)}
    cost = ModelCost(blocks, shape.layers, 0)
    return {"linear": cost.flops(work, "linear"), "full": cost.flops(work, "full")}
