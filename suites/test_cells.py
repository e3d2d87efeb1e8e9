"""One benchmark per cell. The timed region is that of ``geep-bench run``: ids on the device -> logits on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from harness.contracts import Foresees, Predictions
from harness.core import clock
from harness.measure.passes import precision
from harness.running.record import quality
from suites.cells import CellId, Sessions


def test_predict(benchmark: Any, sessions: Sessions, cell: CellId) -> None:
    """Predict the whole test split; accuracy and FLOPs come from the timed pass itself."""
    contender, point = sessions.contender(cell)
    session = sessions.session(cell)
    tokens, at = session.prepared.test.tokens, contender.point
    with torch.inference_mode(), precision(tokens.device, contender.point.execution.dtype):
        foresees = isinstance(contender.fitted, Foresees)
        if isinstance(contender.fitted, Foresees):  # outside the timed region
            at = replace(at, foresight=contender.fitted.foresee(tokens, at=at))

        def predict() -> Predictions:
            predictions = contender.fitted.predict(tokens, at=at)
            clock.synchronise(tokens.device)
            return predictions

        benchmark.group = f"{cell.dataset}, {session.settings.source} data" + (
            " (synthetic)" if session.settings.source == "embedded" else ""
        )
        predictions = benchmark.pedantic(predict, rounds=session.settings.profile.rounds, warmup_rounds=1, iterations=1)
    result = quality(predictions.logits.argmax(1), session.prepared.test.labels.numpy())
    cost, n = contender.fitted.cost, len(tokens)
    benchmark.extra_info.update(
        {
            "cell": session.cell(cell.method, point, contender.fitted).model_dump(),
            "synthetic": session.settings.source == "embedded",
            "accuracy": result.accuracy,
            "accuracy_low": result.accuracy_low,
            "accuracy_high": result.accuracy_high,
            "flops_linear": cost.flops(predictions.work, "linear") / n,
            "flops_full": cost.flops(predictions.work, "full") / n,
            "mean_layers": predictions.work.rows("layer") / n,
            "mean_heads": predictions.work.rows("head") / n,
            "samples_per_s": None if benchmark.disabled else n / benchmark.stats["median"],
            "bound": foresees,
        }
    )
    # The timed pass must have answered every sample.
    assert predictions.logits.shape == (n, session.prepared.task.num_labels)
