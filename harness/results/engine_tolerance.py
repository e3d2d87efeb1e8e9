"""How far the answers of an engine may be from those of the same fit in float32 before its rows are marked."""

from __future__ import annotations

FLOAT32 = ("onnx", "openvino", "ctranslate2")  # engines that compute in float32
OF_THE_RUN = ("eager", "compiled", "packed")  # engines that compute in the run's dtype
DIFFERENCE = 1e-3  # of a class probability, where both sides are in float32
AGREEMENT = 0.98  # share of samples with the same label, on all engines


def too_different(engine: str | None, agree: float | None, difference: float | None, dtype: str = "float32") -> bool:
    """Return whether answers differ more than the engine explains.

    Args:
        engine: its name; ``None``: none is set.
        agree: share of samples with the same label; ``None``: not checked.
        difference: largest difference of a class probability; ``None``: not checked.
        dtype: of the run; bfloat16 alone changes probabilities by more than :data:`DIFFERENCE`.
    """
    if agree is not None and agree < AGREEMENT:
        return True
    exact = engine in FLOAT32 or (engine in OF_THE_RUN and dtype == "float32")
    return exact and difference is not None and difference > DIFFERENCE
