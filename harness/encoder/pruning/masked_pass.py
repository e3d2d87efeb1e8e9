"""Runs an encoder under masks, which may have gradients: a model that is being pruned keeps its weights and its code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.encoder.model import Encoder, EncoderLayer
from harness.encoder.pruning.unit_masks import EncoderMasks, LayerMasks


class MaskedPasses:
    """Multiplies units by masks in every pass of an encoder, until :meth:`remove`.

    Works through hooks on linear layers and norms: for training and eager evaluation, not for prepared engines.
    Norms run over the dimensions of the states that are left, as they do after compaction (CoFi's released code).

    Attributes:
        masks: of the next passes; set by the method that prunes.
    """

    def __init__(self, encoder: Encoder, masks: EncoderMasks) -> None:
        self.masks = masks
        hooks: list[Any] = []
        for index, layer in enumerate(encoder.layers):
            assert isinstance(layer, EncoderLayer)
            hooks += [
                layer.qkv.register_forward_hook(self._heads(index)),
                layer.out.register_forward_hook(self._half(index, "attention")),
                layer.down.register_forward_pre_hook(self._inner(index)),
                layer.down.register_forward_hook(self._half(index, "output")),
                layer.norm_attention.register_forward_hook(self._norm),
                layer.norm_output.register_forward_hook(self._norm),
            ]
        if masks.hidden is not None:
            hooks += [
                encoder.norm.register_forward_pre_hook(lambda norm, args: (self._hidden(args[0]),)),
                encoder.norm.register_forward_hook(self._norm),
            ]
        self._hooks = hooks

    def remove(self) -> None:
        """Run without masks from now on."""
        for hook in self._hooks:
            hook.remove()

    def _of(self, index: int) -> LayerMasks:
        return self.masks.layers[index]

    def _heads(self, index: int) -> Any:
        def masked(linear: nn.Module, args: Any, qkv: Tensor) -> Tensor:
            query, value = self._of(index).query.flatten(), self._of(index).value.flatten()
            return qkv * torch.cat([query, torch.ones_like(query), value]).to(qkv.dtype)

        return masked

    def _inner(self, index: int) -> Any:
        def masked(linear: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            return (args[0] * self._of(index).inner.to(args[0].dtype),)

        return masked

    def _half(self, index: int, which: str) -> Any:
        def masked(linear: nn.Module, args: Any, added: Tensor) -> Tensor:
            gate = getattr(self._of(index), which)
            return self._hidden(added if gate is None else added * gate.to(added.dtype))

        return masked

    def _hidden(self, states: Tensor) -> Tensor:
        hidden = self.masks.hidden
        return states if hidden is None else states * hidden.to(states.dtype)

    def _norm(self, norm: Any, args: tuple[Tensor], normed: Tensor) -> Tensor:
        if self.masks.hidden is None:
            return normed
        kept = self.masks.hidden.detach().nonzero().squeeze(1)
        parts = (norm.weight[kept], norm.bias[kept], norm.eps)
        normed = F.layer_norm(args[0].index_select(1, kept), [len(kept)], *parts)
        return self._hidden(torch.zeros_like(args[0], dtype=normed.dtype).index_copy(1, kept, normed))
