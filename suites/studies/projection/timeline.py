"""Turns the steps of a pass into time on a device card: a clock of the host and a clock of the device behind it.

On a CPU the two are one. On a CUDA device the host runs ahead, and waits where the executor asks for values; so many small launches
cost the host's time, and a wait costs what the device still has to do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.contracts import Compute, DType
from harness.core.errors import ConfigError
from harness.core.work import BlockCost, LayerCost, Step
from harness.execution.engine import rounded
from suites.studies.projection.device_card import DeviceCard, RateCurve, Rates, RateSurface
from suites.studies.projection.operations import Attend, Move, Operation, Product, operations

BYTES = {"float32": 4, "bfloat16": 2}
GRAPH_ROWS = 64  # rows of a graph are a multiple, as in harness.execution.graphs


@dataclass(frozen=True)
class Projection:
    """Time of one pass.

    Attributes:
        seconds: of the whole pass.
        parts: device seconds of products, attention and moves, and host seconds of launches and waits. On a CPU they add
            up to ``seconds``; on a device behind the host they overlap.
        counts: launches, graph launches, waits and copies.
        blocks: device seconds per kind of step.
    """

    seconds: float
    parts: Mapping[str, float]
    counts: Mapping[str, int]
    blocks: Mapping[str, float]


class _Clocks:
    """Host and device while a pass runs."""

    def __init__(self, card: DeviceCard, dtype: DType, matrix: RateSurface, rates: Rates, fast: bool) -> None:
        self.card, self.matrix, self.rates, self.fast = card, matrix, rates, fast
        self.bytes = BYTES[dtype]
        self.host = self.device = 0.0
        self.behind = card.kind == "cuda"
        self.parts: dict[str, float] = defaultdict(float)
        self.counts: Counter[str] = Counter()

    def latency(self, name: str) -> float:
        """Return a latency of the card, 0 for one that its kind does not have."""
        found = getattr(self.card, name)
        return 0.0 if found is None else (found.low if self.fast else found.high)

    def work(self, operation: Operation) -> float:
        """Return the device seconds of one operation."""
        found, part = self._work(operation)
        found = max(found, self.latency("kernel"))
        self.parts[part] += found
        return found

    def _work(self, operation: Operation) -> tuple[float, str]:
        fast, rates = self.fast, self.rates
        match operation:
            case Product(rows, inputs, outputs):
                return self.matrix.seconds(rows, inputs, outputs, fast=fast) if rows else 0.0, "products"
            case Attend(pairs, width, tokens, first):
                curve = (rates.first_attention or rates.attention) if first else rates.attention
                return curve.seconds(4 * width * pairs, tokens, fast=fast), "attention"
            case Move(kind, elements):
                moved = elements * self.bytes
                curve = getattr(rates, kind) or rates.stream
                return curve.seconds(moved, moved, fast=fast), "moves"

    def launch(self, name: str, busy: float) -> None:
        """Ask the device for ``busy`` seconds of work."""
        spent = self.latency(name)
        self.counts[name] += 1
        self.parts["launches"] += spent
        self.host += spent
        self.device = max(self.device, self.host) + busy
        if not self.behind:
            self.host = self.device

    def copy(self, size: int) -> float:
        """Copy between host and device; return when it is done."""
        self.counts["copies"] += 1
        curve: RateCurve | None = self.card.host_copy
        busy = curve.seconds(size, size, fast=self.fast) if curve else 0.0
        self.launch("launch", max(busy, self.latency("kernel")))
        return self.device

    def wait(self, until: float) -> None:
        """Let the host wait for a moment of the device."""
        spent = self.latency("synchronise")
        self.counts["waits"] += 1
        self.parts["waits"] += spent + max(0.0, until - self.host)
        self.host = max(self.host, until) + spent
        if not self.behind:
            self.device = self.host


def project(
    steps: Sequence[Step],
    blocks: Mapping[str, BlockCost],
    depth: int,
    card: DeviceCard,
    dtype: DType,
    compute: Compute = "eager",
    *,
    fast: bool = True,
    own_pairs: bool = False,
) -> Projection:
    """Return the time of recorded steps on a device.

    Args:
        steps: of one pass, from :func:`harness.core.work.recorded`.
        blocks: kind of block -> its cost, of the shape to project; it may be another one than ran.
        depth: layers of the model; decides whether its weights fit into the card's cache.
        compute: ``"eager"``, or ``"graphs"`` for one launch per layer and head.
        fast: use the favourable end of every range of the card; else the other end.
        own_pairs: pairs were counted over each sample's own tokens; else on a grid, and a card with ragged attention has bounds.

    Raises:
        ConfigError: the card has no rates of this type, or cannot launch graphs, or a block cannot be projected.
    """
    if compute not in ("eager", "graphs") or (compute == "graphs" and card.graph_launch is None):
        raise ConfigError(
            f"compute '{compute}' cannot be projected on '{card.title}': choose eager"
            + " or graphs" * (card.kind == "cuda")
        )
    rates, layer = card.rates_of(dtype), blocks["layer"]
    assert isinstance(layer, LayerCost)
    weights = depth * (4 * layer.width**2 + 2 * layer.width * layer.intermediate) * BYTES[dtype]
    matrix = rates.cached if rates.cached and weights <= card.cache_bytes else rates.matrix
    clocks = _Clocks(card, dtype, matrix, rates, fast)
    graphs, ragged = compute == "graphs", card.attention == "ragged"
    arrived: dict[int, float] = {}
    busy: dict[str, float] = defaultdict(float)
    for place, step in enumerate(steps):
        kind = step.what.split(".")[0]
        before = sum(clocks.parts.values())
        if graphs and kind in ("layer", "head"):
            step = replace(step, tally=replace(step.tally, tokens=rounded(step.tally.tokens, GRAPH_ROWS)))
        inside = operations(step, blocks, ragged=ragged, fewest=fast and not own_pairs)
        if graphs and kind in ("layer", "head"):
            inside.append(Move("stream", 2 * step.tally.tokens * layer.width))  # to the fixed buffer
            clocks.launch("graph_launch", sum(map(clocks.work, inside)))
        else:
            for operation in inside:
                clocks.launch("launch", clocks.work(operation))
        if kind in ("upload", "download"):
            arrived[place] = clocks.copy(step.count)
        elif kind == "wait":
            clocks.wait(arrived.get(step.count, clocks.device))
        elif kind == "read":
            for _ in range(step.count):
                clocks.launch("launch", clocks.latency("kernel"))
                clocks.wait(clocks.device)
        busy[kind] += sum(clocks.parts.values()) - before
    return Projection(max(clocks.host, clocks.device), dict(clocks.parts), dict(clocks.counts), dict(busy))
