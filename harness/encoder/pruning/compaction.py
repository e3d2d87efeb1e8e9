"""Compaction: a model without the units that masks remove, whose layers have sizes of their own and run in every executor."""

from __future__ import annotations

from dataclasses import replace

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


def _copy_layer(new: nn.Module, old: nn.Module, mask: LayerMasks, kept: Tensor, factor: Tensor, usual: int) -> None:
    """Fill one layer; ``usual`` is the original width of its heads."""
    heads, width = mask.kept_heads.nonzero().squeeze(1).tolist(), mask.size().head_width
    # Rows of the linear layers as [queries, keys, values][head][dimension]; missing dimensions stay zero, which adds nothing.
    for linear in (new.qkv, new.out, new.up, new.down):
        linear.weight.zero_()
        linear.bias.zero_()
    weight, bias = old.qkv.weight.view(3, -1, usual, old.qkv.in_features), old.qkv.bias.view(3, -1, usual)
    out = old.out.weight.view(old.out.out_features, -1, usual)[kept]
    if heads:
        rows, shifts = new.qkv.weight.view(3, len(heads), width, -1), new.qkv.bias.view(3, len(heads), width)
        columns = new.out.weight.view(len(kept), len(heads), width)
    for place, head in enumerate(heads):
        for part, units in enumerate((mask.query[head], mask.query[head], mask.value[head])):
            dims = units.nonzero().squeeze(1)
            # Masks apply to queries and values; keys are as they were.
            scale = (units[dims] * (width / usual) ** 0.5, torch.ones_like(units[dims]), units[dims])[part]
            rows[part, place, : len(dims)] = weight[part, head, dims][:, kept] * scale[:, None]
            shifts[part, place, : len(dims)] = bias[part, head, dims] * scale
        dims = mask.value[head].nonzero().squeeze(1)
        columns[:, place, : len(dims)] = out[:, head, dims] * _gate(mask.attention) * factor[:, None]
    inner = mask.kept_inner.nonzero().squeeze(1)
    new.out.bias.copy_(old.out.bias[kept] * _gate(mask.attention) * factor)
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
