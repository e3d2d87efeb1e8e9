"""The versioned result schema: one JSON file per cell, strict on reading.

A reader refuses another ``schema`` number instead of guessing. Bump :data:`SCHEMA` with any change of meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

SCHEMA = 1


class StrictRecord(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(StrictRecord):
    """Which measurement this is: the coordinates of one row."""

    method: str
    dataset: str
    source: Literal["embedded", "local", "hub"]
    backbone: str
    seed: int
    point: str
    protocol: str
    order: str
    executor: str
    batch_size: int
    device: str
    dtype: str
    compute: str = "eager"
    batch_tokens: int = 0


class Quality(StrictRecord):
    """Accuracy with its 95 % bootstrap interval, on ``n`` test samples; all in 0..1."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    n: int


class Cost(StrictRecord):
    """Mean executed cost of a sample.

    ``flops_linear``: 2 x MACs of linear layers, as FastBERT counts. ``flops_full``: all matrix products that ran.
    ``mean_layers``: Transformer layers executed, where tokens leave one by one those of its mean token; ``mean_heads``: exit
    heads executed; ``depth``: layers of the model.
    """

    flops_linear: float
    flops_full: float
    params: int
    mean_layers: float
    mean_heads: float
    depth: int
    valid_token_ratio: float = Field(description="valid tokens / executed tokens in the layers, 0..1")


class Speed(StrictRecord):
    """Wall time of the timed region over ``rounds`` passes that alternate with the reference method.

    ``seconds`` is the median of a pass over all n samples. ``speedup`` is the median over rounds of reference seconds
    / own seconds, ``None`` where the run has no reference; ``reference`` names it. ``phases`` are shares of the
    pass (0..1) by name. ``round_seconds`` and ``reference_seconds`` are the passes themselves, round by round: reference
    passes of neighbouring rounds are pairs of a thing with itself, and tell how much of a ratio is noise.
    """

    samples_per_s: float
    seconds: float
    seconds_p10: float
    seconds_p90: float
    rounds: int
    reference: str | None = None
    speedup: float | None = None
    speedup_p10: float | None = None
    speedup_p90: float | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    tokens_per_s: float | None = None
    round_seconds: list[float] = Field(default_factory=list)
    reference_seconds: list[float] = Field(default_factory=list)


class Latency(StrictRecord):
    """Seconds from ids to answers of single batches of ``batch_size`` samples: quantiles over ``n`` batches."""

    batch_size: int
    n: int
    p50: float
    p90: float
    p99: float


class Factor(StrictRecord):
    """One step from layers to wall time: ``ratio`` multiplies the speed-up (below 1: a loss), ``what`` says why."""

    name: str
    ratio: float
    what: str


class SpeedupFactors(StrictRecord):
    """The speed-up over the reference taken apart: the product of the factors is ``product``, measured was ``measured``."""

    factors: list[Factor]
    product: float
    measured: float


class Resources(StrictRecord):
    """What a fitted method takes: bytes on disk, peak bytes of the process, joules (``None``: no counter here)."""

    disk_bytes: int | None = None
    host_peak_bytes: int | None = None
    joules_per_1000: float | None = None


class Overlaps(StrictRecord):
    """Rows with the same ids in two splits, and rows of test that occur in it twice or more."""

    train_test: int
    dev_test: int
    train_dev: int
    within_test: int


class Training(StrictRecord):
    """What fitting cost; ``passes_ratio`` is layer passes per batch over those of plain fine-tuning (None: untrained).

    ``flops``: of the layers, forward and backward, linear convention.
    """

    seconds: float
    steps: int
    layer_passes: int
    passes_ratio: float | None = None
    best_epoch: int | None = None
    dev_accuracy: float | None = None
    flops: float | None = None


class Checks(StrictRecord):
    """What must hold whatever is measured; ``None`` where it was not looked at.

    ``rounds_agree``: share of samples with the same label in every round, whose sample order differs (1.0 is right).
    ``batches_agree``: share with the same label in other batch sizes (1.0 is right). ``state_unchanged``: what the method
    learnt is the same, bit for bit, after testing. ``syncs``: synchronising calls of one pass on CUDA beside its own copies.
    """

    rounds_agree: float
    batches_agree: float | None = None
    state_unchanged: bool | None = None
    syncs: int | None = None


class Result(StrictRecord):
    """One measured cell, as stored."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    cell: Cell
    kind: Literal["method", "control", "bound"]
    role: str | None = Field(default=None, description="role in the comparison of exit decisions, e.g. predicts-exits")
    synthetic: bool = Field(description="embedded data: the word 'synthetic' goes wherever this number goes")
    language: str
    params: dict[str, Any] = Field(description="settings of the operating point, chosen on dev")
    quality: Quality
    cost: Cost
    speed: Speed
    training: Training | None
    checks: Checks
    exit_histogram: list[int] = Field(description="samples that answered from layer 1, 2, ..., depth")
    peak_memory_bytes: int | None = None
    latency: list[Latency] = Field(default_factory=list)
    # Stored under the names that they had first, so that every result of schema 1 loads.
    speedup_factors: SpeedupFactors | None = Field(
        default=None, validation_alias=AliasChoices("speedup_factors", "waterfall"), serialization_alias="waterfall"
    )
    resources: Resources | None = Field(
        default=None, validation_alias=AliasChoices("resources", "footprint"), serialization_alias="footprint"
    )
    overlaps: Overlaps | None = None
    unseen_tokens: float | None = Field(default=None, description="share of test keys that the exit table never saw")
    notes: list[str] = Field(default_factory=list)
    fingerprint: dict[str, Any]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


# Columns of samples/<cell>.parquet, one row per test sample in file order.
SAMPLE_COLUMNS = {
    "index": "int64: row of the test split",
    "length": "int32: tokens, special ones included",
    "label": "int64: gold label",
    "prediction": "int64: predicted label",
    "correct": "bool",
    "confidence": "float32: softmax probability of the prediction",
    "exit_layer": "int16: layer answered from, 1..depth",
    "predicted_exit": "int16: layer the predictor said, 1..depth; 0 where nothing is predicted",
    "difficulty": "int8: true difficulty of embedded samples; -1 for real data",
}
