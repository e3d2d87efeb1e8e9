"""How a pass used its device: launches of blocks, samples per launch, waits of the host, and copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from harness.core.work import Step

BLOCKS = ("layer", "head", "gate")


def launch_counts(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the counts of one pass, for JSON.

    ``launches`` is the number of blocks that ran: layers, heads and gates. ``rows_per_launch`` and ``tokens_per_launch`` are
    means over the layers, in samples and in tokens with padding. ``waits`` are synchronisations, those for the execution order
    and for the answers included; values that the host reads one by one count one each. ``gathers`` are copies of hidden states
    on the device, to pick out or to join samples; ``gather_rows`` are their rows.
    """
    layers = [step.tally for step in steps if step.what.startswith("layer.")]
    counts = Counter(step.what.partition(".")[0] for step in steps)
    return {
        "launches": sum(counts[kind] for kind in BLOCKS),
        "layer_launches": len(layers),
        "rows_per_launch": sum(tally.rows for tally in layers) / max(1, len(layers)),
        "tokens_per_launch": sum(tally.tokens for tally in layers) / max(1, len(layers)),
        "waits": counts["wait"] + sum(step.count for step in steps if step.what == "read"),
        "uploads": counts["upload"],
        "downloads": counts["download"] + sum(step.count for step in steps if step.what == "read"),
        "gathers": counts["gather"] + counts["join"],
        "gather_rows": sum(step.tally.tokens for step in steps if step.what in ("gather", "join")),
    }
