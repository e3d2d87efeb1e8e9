"""Factors of a speed-up: from layers to FLOPs, to the time of blocks, to wall time.

The product of the factors is exactly the ratio of the wall times of one round, because each quantity that enters with one
factor cancels in the next. A factor above 1 is a gain over the reference, below 1 a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from harness.core.work import ModelCost, Work
from harness.results.schema import Factor, SpeedupFactors

# Parts of a pass other than its blocks, in their order; the remaining time is "rest".
PARTS = {
    "predict": ("prediction", "predicting exits"),
    "schedule": ("sorting", "sorting and gathering samples, with one copy to the host"),
    "copy": ("answers", "copying answers to the host, back in input order"),
}


@dataclass(frozen=True)
class Side:
    """One pass of one method over N samples.

    Attributes:
        seconds: wall time.
        phases: seconds by part; blocks run in ``"layers"``.
        cost: of the method's blocks.
    """

    seconds: float
    work: Work
    phases: Mapping[str, float]
    cost: ModelCost

    def of(self, kind: str) -> Work:
        """Return the work in blocks of one kind."""
        return Work({name: tally for name, tally in self.work.blocks.items() if name.split(".")[0] == kind})

    def flops(self, kind: str) -> float:
        """Return the FLOPs (convention ``full``) of blocks of one kind."""
        return float(self.cost.flops(self.of(kind), "full"))

    def tokens(self) -> int:
        """Return the valid tokens of the layers, each once a layer."""
        return sum(tally.valid for tally in self.of("layer").blocks.values())

    def useful(self) -> float:
        """Return the linear FLOPs of the layers for valid tokens, without padding."""
        real = {name: replace(tally, tokens=tally.valid) for name, tally in self.of("layer").blocks.items()}
        return float(self.cost.flops(Work(real), "linear"))

    def block_seconds(self) -> float:
        """Return the seconds in blocks; all seconds if the method does not report them."""
        return self.phases.get("layers", self.seconds)

    def rows_per_call(self) -> float:
        """Return the mean number of samples in one call of a layer."""
        tallies = self.of("layer").blocks.values()
        calls = sum(tally.calls for tally in tallies)
        return sum(tally.rows for tally in tallies) / calls if calls else 0.0


def speedup_factors(own: Side, reference: Side, samples: int) -> SpeedupFactors:
    """Return the factors of the speed-up of ``own`` over ``reference`` on the same ``samples`` samples.

    Methods whose blocks are not of kind ``layer`` have one factor for all FLOPs.
    """
    factors: list[Factor] = []

    def add(name: str, ratio: float, what: str) -> None:
        factors.append(Factor(name=name, ratio=ratio, what=what))

    flops, ref_flops = (float(side.cost.flops(side.work, "full")) for side in (own, reference))
    passes, ref_passes = (side.work.rows("layer") for side in (own, reference))
    useful, ref_useful = own.useful(), reference.useful()
    layered = min(passes, ref_passes, useful, ref_useful) > 0
    if layered:
        add("layers", ref_passes / passes, f"{ref_passes / samples:.2f} to {passes / samples:.2f} layers per sample")
        width, ref_width = useful / own.tokens(), ref_useful / reference.tokens()
        if width != ref_width:
            add("width", ref_width / width, f"a layer costs {width / ref_width:.3f} times as much per token")
        tokens, ref_tokens = own.tokens() / passes, reference.tokens() / ref_passes
        add("length", ref_tokens / tokens, f"{ref_tokens:.1f} to {tokens:.1f} tokens per sample and layer")
        run, ref_run = own.flops("layer"), reference.flops("layer")
        add(
            "attention and padding",
            ref_run / ref_useful / (run / useful),
            f"{run / useful - 1:.1%} on top of the linear FLOPs of valid tokens, {ref_run / ref_useful - 1:.1%} in the reference",
        )
        kept, ref_kept = own.flops("keys"), reference.flops("keys")
        if kept or ref_kept:
            add(
                "kept tokens",
                (ref_run + ref_kept) / ref_run / ((run + kept) / run),
                f"keys and values of tokens that have exited: {kept / run:.1%} on top, {ref_kept / ref_run:.1%} in the reference",
            )
            run, ref_run = run + kept, ref_run + ref_kept
        add(
            "heads",
            ref_flops / ref_run / (flops / run),
            f"{flops / run - 1:.1%} on top, {ref_flops / ref_run - 1:.1%} in the reference",
        )
    else:
        add("FLOPs", ref_flops / flops, "of all blocks")
    spent, ref_spent = own.block_seconds(), reference.block_seconds()
    rows, ref_rows = own.rows_per_call(), reference.rows_per_call()
    add(
        "kernels",
        flops / spent / (ref_flops / ref_spent),
        f"{flops / spent:.3g} FLOP/s with {rows:.1f} samples per launch, {ref_flops / ref_spent:.3g} with {ref_rows:.1f}"
        if layered
        else f"{flops / spent:.3g} FLOP/s, {ref_flops / ref_spent:.3g} in the reference",
    )

    def add_time(name: str, growth: float, ref_growth: float, what: str = "") -> None:
        add(name, ref_growth / growth, f"{what}{growth - 1:.2%} more time, {ref_growth - 1:.2%} in the reference")

    for part, (name, what) in PARTS.items():
        more, ref_more = (spent + own.phases.get(part, 0.0), ref_spent + reference.phases.get(part, 0.0))
        if more > spent or ref_more > ref_spent:
            add_time(name, more / spent, ref_more / ref_spent, f"{what}: ")
        spent, ref_spent = more, ref_more
    add_time("rest", own.seconds / spent, reference.seconds / ref_spent)
    product = prod(factor.ratio for factor in factors)
    return SpeedupFactors(factors=factors, product=product, measured=reference.seconds / own.seconds)
