"""Makes the stored form of a measurement: the result and its per-sample rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import rel_entr, softmax
from sklearn.metrics import f1_score

from harness.contracts import HasRole, HasTraining, Method, Predictions, TrainingConditions, TrainingCost
from harness.core.environment import environment_facts
from harness.core.errors import MethodError
from harness.core.work import BEFORE
from harness.measure.diagnostics import DepthAnswers, Diagnostics
from harness.measure.passes import Contender, Measured
from harness.measure.statistics import bootstrap_interval, calibration_error
from harness.results.rows.answer_bits import to_bits
from harness.results.rows.sample_columns import BEFORE_BIT, DEPTH_COLUMNS
from harness.results.schema import SCHEMA, AnswerBits, Binding, Cell, Checks, Cost, Loyalty, Quality, Result, Training
from harness.running.task import Prepared


def quality(predictions: np.ndarray, labels: np.ndarray, confidence: np.ndarray | None = None) -> Quality:
    """Return accuracy with its interval, and macro F1 over the classes that occur (int64 [n] each).

    Args:
        confidence: probability of the predictions, float [n], for the calibration error.
    """
    correct = predictions == labels
    low, high = bootstrap_interval(correct)
    return Quality(
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1_score(labels, predictions, average="macro", zero_division=0)),
        n=len(labels),
        calibration_error=None if confidence is None else calibration_error(confidence, correct),
    )


def loyalty(logits: np.ndarray, reference: np.ndarray, name: str) -> Loyalty:
    """Return how often and how closely answers are those of the reference (logits float32 [n, C] each)."""
    p, q = (softmax(one.astype(np.float64), axis=1) for one in (logits, reference))
    bits = (rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum(1) / (2 * np.log(2))
    return Loyalty(
        reference=name,
        label_loyalty=float((logits.argmax(1) == reference.argmax(1)).mean()),
        probability_loyalty=float(1 - np.sqrt(bits.clip(0, 1)).mean()),
    )


def confidence_of(predictions: Predictions) -> np.ndarray:
    """Return the softmax probability of the predicted class, float32 [n]."""
    return np.asarray(torch.from_numpy(predictions.logits).softmax(-1).numpy().max(1), dtype=np.float32)


def answer_bits(predictions: Predictions, prepared: Prepared, dev: Predictions) -> AnswerBits:
    """Return which rows are right, from the predictions for test and for dev."""
    splits = ((predictions, prepared.test), (dev, prepared.task.dev))
    test, on_dev = (to_bits(said.logits.argmax(1) == split.labels.numpy()) for said, split in splits)
    return AnswerBits(dev=on_dev, dev_rows=len(prepared.task.dev), test=test)


def build_result(
    cell: Cell,
    method: Method,
    contender: Contender,
    measured: Measured,
    prepared: Prepared,
    diagnostics: Diagnostics,
    notes: Sequence[str],
    binding: Binding,
    key: str,
    dev: Predictions | None = None,
) -> Result:
    """Return the stored form of one measurement.

    Args:
        notes: on what this method learns from and on its engine, in addition to those on the dataset.
        dev: predictions for the dev rows, of methods.

    Raises:
        MethodError: the logits do not have the task's classes.
    """
    predictions, cost = measured.predictions, contender.fitted.cost
    if predictions.logits.shape[1] != prepared.task.num_labels:
        raise MethodError(
            f"predict returned {predictions.logits.shape[1]} classes, the task has {prepared.task.num_labels}: "
            "return logits [N, task.num_labels]"
        )
    work, n = predictions.work, len(predictions.exit_layer)
    exits = predictions.exit_layer.astype(np.int64)
    training, fitted = None, contender.fitted
    if isinstance(fitted, HasTraining) and (report := fitted.training) is not None:
        training = Training(
            seconds=report.seconds,
            steps=report.steps,
            layer_passes=report.layer_passes,
            passes_ratio=report.layer_passes / (report.sample_passes * cost.depth) if cost.depth else None,
            best_epoch=report.best_epoch,
            dev_accuracy=max(report.dev_scores, default=None),
            flops=report.flops or None,
            **training_conditions(report, len(prepared.task.dev)),
        )
    return Result(
        schema=SCHEMA,
        cell=cell,
        kind="bound" if measured.foresees else method.kind,
        role=method.role if isinstance(method, HasRole) else None,
        synthetic=cell.source == "embedded",
        language=prepared.task.language,
        params=dict(contender.point.params),
        quality=quality(predictions.logits.argmax(1), prepared.test.labels.numpy(), confidence_of(predictions)),
        cost=Cost(
            flops_linear=cost.flops(work, "linear") / n,
            flops_full=cost.flops(work, "full") / n,
            params=cost.params,
            mean_layers=work.rows("layer") / n,
            mean_heads=work.rows("head") / n,
            depth=cost.depth,
            params_looked_up=cost.looked_up,
            valid_token_ratio=work.valid_token_ratio(),
        ),
        speed=measured.speed,
        training=training,
        checks=Checks(
            rounds_agree=measured.rounds_agree,
            batches_agree=diagnostics.batches_agree,
            state_unchanged=diagnostics.state_unchanged,
            syncs=diagnostics.syncs,
            engine_agrees=diagnostics.engine_agrees,
            engine_exits=diagnostics.engine_exits,
            engine_difference=diagnostics.engine_difference,
        ),
        exit_histogram=np.bincount(exits[exits != BEFORE], minlength=cost.depth).tolist(),
        answered_before=int((exits == BEFORE).sum()),
        peak_memory_bytes=measured.peak_memory_bytes,
        speedup_factors=measured.speedup_factors,
        latency=diagnostics.latency,
        resources=diagnostics.resources,
        unseen_tokens=diagnostics.unseen_tokens,
        loyalty=_loyalty(measured),
        overlaps=prepared.overlaps,
        label_names=prepared.label_names,
        notes=[*prepared.notes, *notes],
        answers=None if dev is None else answer_bits(predictions, prepared, dev),
        binding=binding,
        key=key,
        fingerprint=environment_facts(),
    )


def _loyalty(measured: Measured) -> Loyalty | None:
    theirs, speed = measured.reference_logits, measured.speed
    if theirs is None or speed is None or speed.reference is None:
        return None
    return loyalty(measured.predictions.logits, theirs, speed.reference)


def depth_bits(answers: DepthAnswers, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return :data:`~harness.results.rows.sample_columns.DEPTH_COLUMNS`: which layers are right, and which agree with the last one.

    Args:
        labels: gold labels, int64 [N].

    Returns:
        bit masks, int64 [N] each.
    """
    places = [BEFORE_BIT if layer == BEFORE else layer for layer in answers.layers]
    bits = np.left_shift(1, np.array(places, dtype=np.int64))[:, None]  # [A, 1]
    said = answers.labels  # [A, N]
    masks = (np.where(good, bits, 0).sum(0) for good in (said == labels, said == said[-1]))
    return dict(zip(DEPTH_COLUMNS, masks, strict=True))


def training_conditions(report: TrainingCost, dev_rows: int) -> dict[str, Any]:
    """Return the conditions under which a fit was trained, as far as its method states them."""
    if not isinstance(report, TrainingConditions):
        return {}
    return {
        "epochs": report.epochs or None,
        "exit_scores": list(report.exit_scores),
        "dev_rows": dev_rows if report.exit_scores else None,
        "precision": report.precision or None,
        "threads": report.threads or None,
        "torch": getattr(report, "torch", None) or None,  # reports of plug-ins need not have it
    }


def sample_rows(measured: Measured, prepared: Prepared, depths: DepthAnswers | None = None) -> pd.DataFrame:
    """Return one row per test sample (columns: :data:`harness.results.rows.sample_columns.SAMPLE_COLUMNS`).

    Args:
        depths: what every exit would answer, which gives the columns :data:`harness.results.rows.sample_columns.DEPTH_COLUMNS`.
    """
    predictions, labels = measured.predictions, prepared.test.labels.numpy()
    label = predictions.logits.argmax(1)
    predicted = np.zeros(len(labels), np.int16)
    if (given := predictions.predicted_exit) is not None:
        predicted = np.where(given == BEFORE, np.int16(-1), given + 1)  # 0 is "no prediction"
    return pd.DataFrame(
        {
            "index": np.arange(len(labels), dtype=np.int64),
            "length": prepared.test.tokens.lengths.cpu().numpy().astype(np.int32),
            "label": labels,
            "prediction": label.astype(np.int64),
            "correct": label == labels,
            "confidence": confidence_of(predictions),
            "exit_layer": (predictions.exit_layer + 1).astype(np.int16),
            "predicted_exit": predicted.astype(np.int16),
            "difficulty": prepared.difficulty.astype(np.int8),
            **({} if depths is None else depth_bits(depths, labels)),
        }
    )
