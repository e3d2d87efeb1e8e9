"""Encoder layers in int8, quantised after training without data: the usual first step on a CPU.

Embeddings, norms, softmax, heads, gates and everything else stay in float32: answers and exit rules are computed as without the
engine, on hidden states with rounding errors. The two engines differ in how activations are scaled:

``int8``
    each row by its own largest value, so that rows are independent. float32 noise of other batch shapes can still change a
    rounding now and then. Runs on few numbers of rows, as packed weights do.
``int8-call``
    all rows of a call together, in seven bits, by the fused kernel of torch's ``quantize_dynamic`` (deprecated since torch
    2.10), with a scale per output. An answer depends on the other rows of the batch; the check of batch sizes marks the row
    if labels change.
"""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import nn

from harness.core.errors import MethodError
from harness.encoder.device_kernels.int8_linear import Int8Linear, activation_steps
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.encoder.multi_exit import MultiExitModel

_quantised: WeakKeyDictionary[MultiExitModel, dict[type[Int8Linear], MultiExitModel]] = WeakKeyDictionary()


def quantised(model: MultiExitModel, kind: type[Int8Linear] = Int8Linear) -> MultiExitModel:
    """Return the trained model with the linear layers of its encoder in int8.

    All other weights are shared with ``model``, which stays as it is. Methods with one model share its int8 form.
    """
    kept = _quantised.setdefault(model, {})
    if kind not in kept:
        new = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        for module in list(new.encoder.layers.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and child.weight.numel():  # of pruned layers, nothing may be left
                    setattr(module, name, kind.of(child))
        kept[kind] = new.eval()
    return kept[kind]


def check_exact() -> None:
    """Check that sums of int8 products are exact on this machine.

    Raises:
        MethodError: they are not, or this torch has no kernel for them.
    """
    if not can_pack(torch.float32):
        raise MethodError("it needs a build of torch with oneDNN: use another engine on this machine")
    if not activation_steps():
        raise MethodError("products of int8 are not exact on this CPU: use another engine on this machine")
