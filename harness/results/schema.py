"""The versioned result schema: one JSON file per cell, validated strictly on reading.

Results with another ``schema`` number are refused. Raise :data:`SCHEMA` with any change of meaning.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field

from harness.core.names import FolderLabel, Label, StoredName
from harness.results.rows.answer_bits import AnswerBits
from harness.results.strict_record import StrictRecord

SCHEMA = 1


class Cell(StrictRecord):
    """The coordinates that identify one measurement.

    Attributes:
        method: a method or variant.
        dataset: its name.
        source: where the data came from.
        backbone: name of the encoder.
        seed: training seed.
        point: operating point, e.g. ``speed=0.5``.
        protocol: ``paper`` or ``modern`` (see the execution settings of a profile).
        order: how samples were sorted, ``arrival`` or ``length``.
        executor: how batches were made and samples left.
        batch_size: samples per batch.
        device: ``cpu`` or ``cuda``.
        dtype: number type of weights and hidden states.
        compute: how blocks were run, e.g. ``eager``, ``packed``, ``graphs``.
        batch_tokens: maximum number of tokens per batch; 0 without such a limit.
        engine: engine of the method (:mod:`harness.engines`), which replaces ``dtype`` and ``compute``; ``None`` without one.
    """

    method: StoredName
    dataset: StoredName
    source: Literal["embedded", "local", "hub"]
    backbone: FolderLabel
    seed: int
    point: Label
    protocol: Label
    order: Label
    executor: Label
    batch_size: int
    device: Label
    dtype: Label
    compute: Label = "eager"
    batch_tokens: int = 0
    engine: Label | None = None


class Quality(StrictRecord):
    """Accuracy with its 95 % bootstrap interval; all in 0..1.

    Attributes:
        accuracy: share of correct test samples.
        accuracy_low, accuracy_high: ends of the interval.
        macro_f1: mean F1 over the classes that occur.
        n: test samples.
        calibration_error: expected one (:func:`harness.measure.statistics.calibration_error`); ``None``: an older result.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    n: int
    calibration_error: float | None = None


class Cost(StrictRecord):
    """Mean executed cost per sample.

    Attributes:
        flops_linear: 2 x MACs of linear layers, as FastBERT counts.
        flops_full: all matrix products that ran, and additions of looked-up vectors in models without Transformer layers.
        params: parameters of the model.
        mean_layers: executed Transformer layers (averaged over tokens if tokens exit one by one).
        mean_heads: executed exit heads.
        depth: Transformer layers of the model; 0 if it has none.
        params_looked_up: parameters in tables of which single rows are read, such as word embeddings; ``None``: not recorded.
    """

    flops_linear: float
    flops_full: float
    params: int
    mean_layers: float
    mean_heads: float
    depth: int
    valid_token_ratio: float = Field(
        description="valid tokens / executed tokens in the layers, or in all blocks without any, 0..1"
    )
    params_looked_up: int | None = None


class Speed(StrictRecord):
    """Wall time of the timed region over passes that alternate with the reference method.

    Attributes:
        samples_per_s: at the median pass.
        seconds: wall time of all n samples, median over passes.
        seconds_p10, seconds_p90: 10th and 90th percentile over passes.
        rounds: number of passes.
        reference: the method that the speed-up is relative to; ``None`` if the run has none.
        speedup: median over rounds of reference seconds / own seconds.
        speedup_p10, speedup_p90: 10th and 90th percentile over rounds.
        phases: shares of the pass (0..1) by name.
        tokens_per_s: at the median pass.
        round_seconds: seconds of each pass; successive passes differ by noise only, which gives the noise of a speed-up.
        reference_seconds: the same for the reference.
        together: number of cells that share these passes of the reference.
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
    together: int = 1


class Tokenising(StrictRecord):
    """Wall time from raw texts to token ids on the device, which comes before the timed region of a cell.

    Attributes:
        seconds: of all n samples in order of arrival, median over passes.
        passes: number of passes.
        batch_size: texts in one call of the tokenizer, as many as the cell has samples in a batch.
        threads: of the tokenizer, as many as the cell has.
    """

    seconds: float
    passes: int
    batch_size: int
    threads: int


class Latency(StrictRecord):
    """Seconds from ids to answers for single batches.

    Attributes:
        batch_size: samples per batch.
        n: number of batches.
        p50, p90, p99: median, 90th and 99th percentile.
    """

    batch_size: int
    n: int
    p50: float
    p90: float
    p99: float


class Factor(StrictRecord):
    """One factor of a speed-up.

    Attributes:
        ratio: its size; below 1 for a loss.
        name, what: its name, and an explanation.
    """

    name: str
    ratio: float
    what: str


class SpeedupFactors(StrictRecord):
    """The factors of a speed-up over the reference.

    Attributes:
        factors: in the order of the explanation.
        product: of all factors.
        measured: the speed-up of the same round.
    """

    factors: list[Factor]
    product: float
    measured: float


class Resources(StrictRecord):
    """Resources of a fitted method.

    Attributes:
        disk_bytes: bytes of its files, with the weights that it uses of other methods.
        host_peak_bytes: peak of the process during its own passes, other weights in memory included; ``None`` if unknown.
        joules_per_1000: energy for 1,000 samples; ``None`` without a counter.
    """

    disk_bytes: int | None = None
    host_peak_bytes: int | None = None
    joules_per_1000: float | None = None


class Loyalty(StrictRecord):
    """How much of the reference's behaviour a method has; of cells that were timed beside it.

    Attributes:
        reference: the method.
        label_loyalty: share of samples with the reference's label, right or wrong (0..1).
        probability_loyalty: mean over samples of 1 - sqrt(JS), with the Jensen-Shannon divergence of both distributions to base 2,
            so that it is in 0..1 (Xu et al., EMNLP 2021, "Beyond preserved accuracy").
    """

    reference: str
    label_loyalty: float
    probability_loyalty: float


class Overlaps(StrictRecord):
    """Numbers of rows with the same token ids.

    Attributes:
        train_test, dev_test: test rows that occur in train, or in dev.
        train_dev: dev rows that occur in train.
        within_test: test rows that occur twice or more.
    """

    train_test: int
    dev_test: int
    train_dev: int
    within_test: int


class Training(StrictRecord):
    """Cost of fitting.

    Attributes:
        seconds: wall time.
        steps: optimiser steps.
        layer_passes: forward passes of one sample through one layer, teachers included.
        passes_ratio: layer passes per batch, relative to plain fine-tuning; ``None`` if nothing was trained.
        best_epoch: epoch whose weights were kept, from 1; ``None`` if the last one is always kept.
        dev_accuracy: best score on dev: accuracy at full depth or, of early exits, the area under accuracy over layers.
        flops: of the layers, forward and backward, convention ``linear``.
        epochs: that training was allowed, of the stage that ``best_epoch`` belongs to; ``None``: not recorded.
        exit_scores: dev accuracy (0..1) of every answering layer of the kept weights, in order of depth; empty: not recorded.
        dev_rows: rows behind these accuracies.
        precision: of the matrix products, ``float32`` or ``bfloat16``; ``None``: not recorded.
        threads: of the CPU that the fit used; ``None``: not recorded.
        torch: version that trained the fit, which may be older than the one that measured it; ``None``: not recorded.
    """

    seconds: float
    steps: int
    layer_passes: int
    passes_ratio: float | None = None
    best_epoch: int | None = None
    dev_accuracy: float | None = None
    flops: float | None = None
    epochs: int | None = None
    exit_scores: list[float] = Field(default_factory=list)
    dev_rows: int | None = None
    precision: str | None = None
    threads: int | None = None
    torch: str | None = None


class Checks(StrictRecord):
    """Checks that every measurement must pass; ``None`` if a check was not made.

    Attributes:
        rounds_agree: share of samples with the same label in every round, in any order of samples (1.0 is right).
        batches_agree: share with the same label at batch size 1 (1.0 is right).
        state_unchanged: the weights of the method are the same, bit for bit, after testing.
        syncs: synchronising calls in one pass on CUDA, without its copies.
        engine_agrees: share of samples with the same label as the same fit in float32; for methods with an ``engine``.
        engine_exits: share of samples that left at the same layer as there.
        engine_difference: largest difference of a class probability to that fit, over samples with the same exit layer.
    """

    rounds_agree: float | None = None
    batches_agree: float | None = None
    state_unchanged: bool | None = None
    syncs: int | None = None
    engine_agrees: float | None = None
    engine_exits: float | None = None
    engine_difference: float | None = None


class Binding(StrictRecord):
    """What two cells must have in common to be paired or averaged; compared by :mod:`harness.results.comparability`.

    Everything else that must be equal, such as batch size and dtype, is a coordinate of :class:`Cell`.

    Attributes:
        test_rows: hash of texts and labels of the test rows, in order.
        train_rows: the same of train and dev.
        backbone: hash of the backbone's content; empty for the embedded one, which ``versions`` covers.
        max_length: tokens per sample.
        training: settings that the profile gives to all methods and that this method uses, as JSON text.
        own: names of the method's own settings; methods may differ in them.
        fits: method -> hash of its settings, seeds aside: the method's own, those that it learns from, and the reference's.
        versions: versions of the code of these fits. Two runs may differ in them, two cells of one table may not.
        precision: in which these fits were trained, e.g. ``bfloat16``, or ``bfloat16/float32`` if they differ; ``None``: unknown.
        fit_threads: CPU threads of every fit, 0 on another device; ``None``: unknown.
        settings: as ``fits``, without content of files and rows, so equal on all sets of one profile; ``None``: unknown.
        points: fit -> its settings that choose operating points (speeds, budgets), as JSON text: the method's own and those that
            it learns from; ``None``: unknown. Two cells may differ in them, an export may not.
    """

    test_rows: str
    train_rows: str
    backbone: str
    max_length: int
    training: dict[str, str]
    own: list[str]
    fits: dict[str, str]
    versions: dict[str, str]
    precision: str | None = None
    fit_threads: int | None = None
    settings: dict[str, str] | None = None
    points: dict[str, str] | None = None


class Result(StrictRecord):
    """One measured cell, as stored.

    Attributes:
        schema_: number of this schema.
        cell: what was measured.
        kind: ``method``, ``control`` or ``bound``.
        language: language of the dataset.
        quality: accuracy.
        cost: FLOPs, layers and parameters.
        speed: times; ``None`` if the cell was measured for accuracy and work only.
        tokenising: time before the timed region; the same for all cells of one run and tokenizer. ``None``: not measured.
        training: cost of fitting; ``None`` if nothing was trained.
        checks: results of the built-in checks.
        peak_memory_bytes: on CUDA, the peak of the allocator during its own passes, other weights in memory included.
        latency: of single samples; empty for controls, bounds and untimed cells.
        speedup_factors: breakdown of the speed-up (stored as ``waterfall``).
        resources: memory, disk and energy (stored as ``footprint``).
        loyalty: to the reference; ``None`` if the cell was not timed beside it.
        overlaps: rows that two splits share.
        notes: remarks on the data.
        answers: which rows of dev and test are right; ``None`` for controls, bounds and untimed cells, and in older results.
        fingerprint: machine and versions.
    """

    schema_: int = Field(default=SCHEMA, alias="schema")
    cell: Cell
    kind: Literal["method", "control", "bound"]
    role: str | None = Field(default=None, description="role in the comparison of exit decisions, e.g. predicts-exits")
    synthetic: bool = Field(description="embedded data: every report of this number says 'synthetic'")
    language: str
    params: dict[str, Any] = Field(description="settings of the operating point, chosen on dev")
    quality: Quality
    cost: Cost
    speed: Speed | None = None
    tokenising: Tokenising | None = None
    training: Training | None
    checks: Checks
    exit_histogram: list[int] = Field(description="samples that answered from layer 1, 2, ..., depth")
    answered_before: int = Field(
        default=0, ge=0, description="samples that were answered before layer 1; all of a model without layers"
    )
    peak_memory_bytes: int | None = None
    latency: list[Latency] = Field(default_factory=list)
    # Stored under their first names, so that every result of schema 1 loads.
    speedup_factors: SpeedupFactors | None = Field(
        default=None, validation_alias=AliasChoices("speedup_factors", "waterfall"), serialization_alias="waterfall"
    )
    resources: Resources | None = Field(
        default=None, validation_alias=AliasChoices("resources", "footprint"), serialization_alias="footprint"
    )
    loyalty: Loyalty | None = None
    overlaps: Overlaps | None = None
    label_names: list[Label] = Field(default_factory=list, description="names of the classes, class 0 first")
    unseen_tokens: float | None = Field(default=None, description="share of test keys without a row in the exit table")
    notes: list[str] = Field(default_factory=list)
    answers: AnswerBits | None = None
    binding: Binding | None = Field(default=None, description="None: measured before results had one")
    key: str = Field(default="", description="content key of settings, data and weights; empty in older results")
    fingerprint: dict[str, Any]

    model_config = ConfigDict(populate_by_name=True)

    @property
    def samples_per_s_from_text(self) -> float | None:
        """Samples/s with tokenising before every pass, one after the other; ``None`` if either was not timed."""
        if self.speed is None or self.tokenising is None:
            return None
        return self.quality.n / (self.speed.seconds + self.tokenising.seconds)
