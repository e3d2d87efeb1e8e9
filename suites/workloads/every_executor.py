"""Every executor on one model and the same samples, in every mode, to compare what is counted with what runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.cascade import run_cascade
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.regrouping.rebatch import run_rebatched
from harness.execution.sequential import run_faithful, run_sequential
from harness.execution.token_exits import TokenExits, run_token_exits
from harness.execution.verified import run_verified

Run = Callable[[], Predictions]


def every_executor(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> dict[str, Run]:
    """Return a function per executor and mode that runs one pass; samples leave at all layers.

    Args:
        model: with a head after every layer.
    """
    depth = model.depth
    exits = torch.arange(len(tokens), dtype=torch.int16) % depth
    looks = torch.stack([exits // 2, exits], 1)
    rule = Entropy(0.6)
    exact = replace(execution, executor="exact-k")
    of_words = TokenExits.of(torch.arange(model.encoder.shape.vocab_size) % depth, depth)
    return {
        "full": lambda: run_full(model, tokens, execution),
        "ladder": lambda: run_assigned(model, tokens, exits, replace(execution, executor="ladder")),
        "ladder, shared head": lambda: run_assigned(model, tokens, exits, execution, answer="shared"),
        "exact-k": lambda: run_assigned(model, tokens, exits, exact),
        "look-once": lambda: run_look_once(model, tokens, 0, lambda _, sizes: (sizes % depth).short(), execution),
        "verified, once": lambda: run_verified(model, tokens, exits[:, None], execution, rule),
        "verified, steps": lambda: run_verified(model, tokens, looks, execution, rule),
        "shrink": lambda: run_sequential(model, tokens, execution, rule),
        "shrink-faithful": lambda: run_faithful(model, tokens, execution, rule),
        "rebatch": lambda: run_rebatched(model, tokens, execution, rule),
        "token exits": lambda: run_token_exits(model, tokens, of_words, execution),
        "cascade": lambda: run_cascade(model, model, tokens, execution, rule),
    }


def counted_twice(model: MultiExitModel, run: Run) -> tuple[int, int]:
    """Run one pass, and return its FLOPs as counted by the executor and as counted by torch."""
    # On the CPU, torch counts scaled_dot_product_attention as zero except on the math path.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work = run().work
    return model.cost().flops(work, "full"), counter.get_total_flops()
