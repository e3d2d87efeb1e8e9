"""How far the answers of an engine may be from those of the same fit in float32 before its rows are marked."""

from __future__ import annotations

FLOAT32 = ("eager", "compiled", "packed", "onnx", "openvino", "ctranslate2")  # engines that compute in float32
DIFFERENCE = 1e-3  # of a class probability, on these engines
AGREEMENT = 0.98  # share of samples with the same label, on all engines


def too_different(engine: str | None, agree: float | None, difference: float | None) -> bool:
    """Return whether answers differ more than the engine explains.

    Args:
        engine: its name; ``None``: none is set.
        agree: share of samples with the same label; ``None``: not checked.
        difference: largest difference of a class probability; ``None``: not checked.
    """
    if agree is not None and agree < AGREEMENT:
        return True
    return engine in FLOAT32 and difference is not None and difference > DIFFERENCE
