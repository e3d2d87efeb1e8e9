"""Compaction: a model without the units that masks remove, whose layers have sizes of their own and run in every executor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.encoder.model import Encoder, FastBertHead, LinearHead
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.pruning.unit_masks import EncoderMasks, LayerMasks
from harness.encoder.shape import EncoderShape


def compacted_shape(shape: EncoderShape, masks: EncoderMasks) -> EncoderShape:
    """Return the shape of an encoder without the units that are removed."""
    sizes = tuple(layer.size() for layer in masks.layers)
    if masks.hidden is None:
        return replace(shape, sizes=sizes)
    width = int((masks.hidden != 0).sum())
    return replace(shape, sizes=sizes, width=width, unpruned_width=shape.width)


@torch.no_grad()
def compacted(model: MultiExitModel, masks: EncoderMasks) -> MultiExitModel:
    """Return a model without the removed units, in eval mode; its answers are those under the masks, up to rounding.

    Masks between 0 and 1 go into the weights. The scale of attention scores stays that of the original head width, although heads
    are narrower: queries are rescaled.

    Args:
        model: of BERT's structure, not compacted before; it stays as it is.
    """
    old, hidden = model.encoder, masks.hidden
    kept = torch.arange(old.shape.width, device=old.device) if hidden is None else hidden.nonzero().squeeze(1)
    factor = torch.ones(len(kept), device=old.device) if hidden is None else hidden[kept]
    encoder = Encoder(compacted_shape(old.shape, masks)).to(old.device)
    new = MultiExitModel(encoder, model.labels, model.exits, model.head_kind)
    for name, table in old.tables().items():
        ours = getattr(encoder, name)
        ours.weight.copy_(table.weight if old.shape.embedding else table.weight[:, kept] * factor)
    if old.shape.embedding:
        for part in ("norm", "project"):
            getattr(encoder, part).load_state_dict(getattr(old, part).state_dict())
    else:
        _copy_norm(encoder.norm, old.norm, kept, factor)
    for ours, theirs, mask in zip(encoder.layers, old.layers, masks.layers, strict=True):
        _copy_layer(ours, theirs, mask, kept, factor, old.shape.head_width)
    for exit_layer in model.answers:
        _copy_head(new.student(exit_layer), model.student(exit_layer), kept)
    return new.eval()


def _copy_norm(new: nn.LayerNorm, old: nn.LayerNorm, kept: Tensor, factor: Tensor) -> None:
    new.weight.copy_(old.weight[kept] * factor)
    new.bias.copy_(old.bias[kept] * factor)


def _copy_layer(new: Any, old: Any, mask: LayerMasks, kept: Tensor, factor: Tensor, usual: int) -> None:
    """Fill one layer; ``usual`` is the original width of its heads."""
    size = mask.size()
    weight, bias = old.qkv.weight.view(3, -1, usual, old.qkv.in_features), old.qkv.bias.view(3, -1, usual)
    columns = old.out.weight.view(old.out.out_features, -1, usual)
    ours, out = (getattr(part, "linear", part) for part in (new.qkv, new.out))
    # Masks apply to queries and values; keys are as they were.
    rescaled = mask.query * (size.head_width / usual) ** 0.5
    rows, shifts, results = [], [], []
    for part, factors in enumerate((rescaled, torch.ones_like(mask.query), mask.value)):
        for head in mask.kept_heads.nonzero().squeeze(1).tolist():
            dims = (mask.value if part == 2 else mask.query)[head].nonzero().squeeze(1)
            rows.append(weight[part, head, dims][:, kept] * factors[head, dims, None])
            shifts.append(bias[part, head, dims] * factors[head, dims])
            if part == 2:
                results.append(columns[kept][:, head, dims])
    if rows:
        ours.weight.copy_(torch.cat(rows))
        ours.bias.copy_(torch.cat(shifts))
        out.weight.copy_(torch.cat(results, 1) * _gate(mask.attention) * factor[:, None])
    out.bias.copy_(old.out.bias[kept] * _gate(mask.attention) * factor)
    inner = mask.kept_inner.nonzero().squeeze(1)
    new.up.weight.copy_(old.up.weight[inner][:, kept])
    new.up.bias.copy_(old.up.bias[inner])
    new.down.weight.copy_(old.down.weight[kept][:, inner] * mask.inner[inner] * _gate(mask.output) * factor[:, None])
    new.down.bias.copy_(old.down.bias[kept] * _gate(mask.output) * factor)
    _copy_norm(new.norm_attention, old.norm_attention, kept, factor)
    _copy_norm(new.norm_output, old.norm_output, kept, factor)


def _gate(gate: Tensor | None) -> Tensor | float:
    return 1.0 if gate is None else gate


def _copy_head(new: FastBertHead | LinearHead, old: FastBertHead | LinearHead, kept: Tensor) -> None:
    """Copy a head; of its first layer, the columns of the dimensions that are left."""
    reads = "narrow.weight" if isinstance(old, FastBertHead) else "dense.weight"
    state = dict(old.state_dict())
    new.load_state_dict({**state, reads: state[reads][:, kept]})
