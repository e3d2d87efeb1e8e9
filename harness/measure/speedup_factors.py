"""A speed-up taken apart: from layers to FLOPs to the time of blocks to wall time, each step a factor.

Factors multiply to the ratio of wall times of one round, exactly: every quantity that enters with one factor leaves with the
next. Above 1 a factor is a gain over the reference, below 1 a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.core.work import ModelCost, Tally, Work
from harness.results.schema import Factor, SpeedupFactors

# Parts of a pass beside its blocks, in the order in which they happen; what is left is "rest".
PARTS = {
    "predict": ("prediction", "exits are predicted"),
    "schedule": ("sorting", "samples are sorted and gathered, and the host is told"),
    "copy": ("answers", "answers go to the host, back in input order"),
}


@dataclass(frozen=True)
class Side:
    """One pass of one method over N samples.

    Attributes:
        seconds: wall time.
        work: what was executed.
        phases: seconds by part; blocks run in ``"layers"``.
        cost: of its blocks.
    """

    seconds: float
    work: Work
    phases: Mapping[str, float]
    cost: ModelCost

    def of(self, kind: str) -> Work:
        """The part of the work that is blocks of one kind."""
        return Work({name: tally for name, tally in self.work.blocks.items() if name.split(".")[0] == kind})

    def layers(self) -> Work:
        """The part of the work that is layers."""
        return self.of("layer")

    def useful(self) -> float:
        """Linear FLOPs of the layers over tokens that are no padding."""
        real = {name: replace(tally, tokens=tally.valid) for name, tally in self.layers().blocks.items()}
        return float(self.cost.flops(Work(real), "linear"))

    def block_seconds(self) -> float:
        """Seconds in blocks; all of them where the method does not say."""
        return self.phases.get("layers", self.seconds)

    def rows_per_call(self) -> float:
        """Samples that a layer is run over at a time."""
        tallies = self.layers().blocks.values()
        calls = sum(tally.calls for tally in tallies)
        return sum(tally.rows for tally in tallies) / calls if calls else 0.0


def speedup_factors(own: Side, reference: Side, samples: int) -> SpeedupFactors:
    """Why ``own`` is so much faster than ``reference`` over the same samples.

    Methods with blocks of another kind than ``layer`` have one factor for all their FLOPs.
    """
    factors: list[Factor] = []

    def add(name: str, ratio: float, what: str) -> None:
        factors.append(Factor(name=name, ratio=ratio, what=what))

    def by(quantity: str) -> tuple[float, float]:
        ours, theirs = (getattr(side, quantity)() for side in (own, reference))
        return float(ours), float(theirs)

    flops, ref_flops = (float(side.cost.flops(side.work, "full")) for side in (own, reference))
    passes, ref_passes = (side.work.rows("layer") for side in (own, reference))
    useful, ref_useful = by("useful")
    layered = min(passes, ref_passes, useful, ref_useful) > 0
    if layered:
        add("layers", ref_passes / passes, f"{ref_passes / samples:.2f} to {passes / samples:.2f} layers a sample")
        width, ref_width = (_per_token(side.cost) for side in (own, reference))
        if width != ref_width:
            add("width", ref_width / width, f"a layer costs {width / ref_width:.3f} times as much a token")
        tokens, ref_tokens = useful / width / passes, ref_useful / ref_width / ref_passes
        add(
            "length", ref_tokens / tokens, f"{ref_tokens:.1f} to {tokens:.1f} tokens in a sample's pass through a layer"
        )
        run, ref_run = (float(side.cost.flops(side.layers(), "full")) for side in (own, reference))
        add(
            "attention and padding",
            ref_run / ref_useful / (run / useful),
            f"{run / useful - 1:.1%} on top of linear FLOPs of real tokens, {ref_run / ref_useful - 1:.1%} there",
        )
        kept, ref_kept = (float(side.cost.flops(side.of("keys"), "full")) for side in (own, reference))
        if kept or ref_kept:
            add(
                "kept tokens",
                (ref_run + ref_kept) / ref_run / ((run + kept) / run),
                f"keys and values of tokens that have left: {kept / run:.1%} on top, {ref_kept / ref_run:.1%} there",
            )
            run, ref_run = run + kept, ref_run + ref_kept
        add(
            "heads",
            ref_flops / ref_run / (flops / run),
            f"{flops / run - 1:.1%} on top, {ref_flops / ref_run - 1:.1%} there",
        )
    else:
        add("FLOPs", ref_flops / flops, "of all blocks")
    spent, ref_spent = by("block_seconds")
    rows, ref_rows = by("rows_per_call")
    add(
        "kernels",
        flops / spent / (ref_flops / ref_spent),
        f"{flops / spent:.3g} FLOP/s with {rows:.1f} samples a launch, {ref_flops / ref_spent:.3g} with {ref_rows:.1f}"
        if layered
        else f"{flops / spent:.3g} FLOP/s, {ref_flops / ref_spent:.3g} there",
    )
    for part, (name, what) in PARTS.items():
        more, ref_more = (spent + own.phases.get(part, 0.0), ref_spent + reference.phases.get(part, 0.0))
        if more > spent or ref_more > ref_spent:
            share, there = more / spent - 1, ref_more / ref_spent - 1
            add(name, ref_more / ref_spent / (more / spent), f"{what}: {share:.2%} more time, {there:.2%} there")
        spent, ref_spent = more, ref_more
    share, there = own.seconds / spent - 1, reference.seconds / ref_spent - 1
    add("rest", reference.seconds / ref_spent / (own.seconds / spent), f"{share:.2%} more time, {there:.2%} there")
    product = 1.0
    for factor in factors:
        product *= factor.ratio
    return SpeedupFactors(factors=factors, product=product, measured=reference.seconds / own.seconds)


def _per_token(cost: ModelCost) -> float:
    """Linear FLOPs of one layer over one token."""
    return float(cost.blocks["layer"].flops(Tally(rows=0, tokens=1, valid=1), "linear"))
